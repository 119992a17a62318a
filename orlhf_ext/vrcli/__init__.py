"""VR-CLI: the reward of a plan is how much it lowers the perplexity of the gold text (Gurung & Lapata, 2025)."""
