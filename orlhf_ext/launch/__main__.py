"""``python -m orlhf_ext.launch LAUNCHER ...``."""

from .launcher import main

if __name__ == "__main__":
    main()
