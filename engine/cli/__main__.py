"""``python -m engine.cli``: the same command for launchers that start modules, such as torchrun."""

from engine.cli.main import main

if __name__ == "__main__":
    main(prog_name="strata")
