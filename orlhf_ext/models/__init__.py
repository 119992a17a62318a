"""Models over texts: folders, weights, chat templates, batches, likelihoods, sampling."""
