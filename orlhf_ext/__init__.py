"""Methods that OpenRLHF does not have, run through OpenRLHF's own, unmodified launchers."""

__version__ = "0.1.0"
