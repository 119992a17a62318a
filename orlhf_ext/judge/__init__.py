"""A judge compares the samples of a prompt in pairs: as a reward (``judge``), and of two policies' samples."""
