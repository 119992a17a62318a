"""What Reddit puts in the place of a text that is gone: the one rule for comments, posts and tables of stories.

The whole text has to be such a notice, in brackets of any kind: ``[deleted]``, ``[ Removed by Reddit ]``, ``[deleted by
user]``, ``[ Removed by reddit in response to a copyright notice. ]``; or without brackets the longer wordings of apps
(``Comment removed by moderator``). A story that mentions, quotes or begins with one is a story.
"""

from __future__ import annotations

import html
import re

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
#: no notice is longer
_LONGEST = 300
_WHAT = r"(?:this |the )?(?:(?:comment|post|submission|story|content|message) )?(?:(?:was|is|has been) )?"
_WHO = (
    r"(?:the )?(?:original )?(?:users?|author|poster|op|reddit|(?:auto ?)?mod(?:erator)?s?(?: team)?"
    r"|admin(?:istrator)?s?|(?:reddit'?s? )?(?:spam )?filters?"
    r"|reddit'?s? (?:legal|admins?|safety|anti-evil)(?: (?:operations|team))*)"
)
#: what Reddit says of why; no brackets but those of a link
_WHY = (
    r"(?: (?:in response to|on account of|due to|because of|for|as) "
    r"(?=.*\b(?:copyright|dmca|trademark|legal|court|polic(?:y|ies)|rules?|terms|spam|reports?))"
    r"(?:[^\[\](){}<>]|\[[^\[\]]*\]\([^()]*\))+)?"
)
_GONE = rf"{_WHAT}(deleted|removed)"
_BRACKETED = re.compile(rf"[\[({{<] ?{_GONE}(?: by {_WHO}{_WHY})?(?: ?\.)? ?[\])}}>]", re.IGNORECASE)
_BARE = re.compile(rf"{_GONE} by {_WHO}\.?", re.IGNORECASE)
_UNAVAILABLE = re.compile(r"\[ ?(?:unavailable|not available) ?\]", re.IGNORECASE)


def status_of(text: str) -> str:
    """``ok`` for a text, or what a notice in its place means: ``deleted``, ``removed`` or ``missing``."""
    text = text.strip()
    if len(text) > _LONGEST and text[0] != "&" and not _INVISIBLE.match(text):
        return "ok"  # longer than any notice, and not blank
    text = _INVISIBLE.sub("", html.unescape(html.unescape(text))).replace("\\", "").replace("\u2019", "'")
    text = " ".join(text.split()).strip("*_~ ")
    if len(text) <= _LONGEST and (found := _BRACKETED.fullmatch(text) or _BARE.fullmatch(text)):
        return found[1].lower()
    return "ok" if text and not _UNAVAILABLE.fullmatch(text) else "missing"
