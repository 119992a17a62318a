"""Bradley-Terry and generative reward models of creative writing (LitBench): prompts, verdicts, evaluation."""
