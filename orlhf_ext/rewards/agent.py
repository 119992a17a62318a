"""The agent file of a run with ``--ext.reward``: one turn, and no reward yet. `orlhf_ext.rewards.generator` fills it in
for all rollouts of a batch at once."""

from openrlhf.utils.agent import SingleTurnAgentExecutor


class AgentExecutor(SingleTurnAgentExecutor):
    """OpenRLHF's own, without an endpoint that gives rewards."""

    def __init__(self) -> None:
        super().__init__(None)
