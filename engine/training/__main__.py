"""`python -m engine.training`: the command that `dfastllm train` starts."""

from engine.training.cli import main

if __name__ == "__main__":
    main()
