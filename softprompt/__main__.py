"""`python -m softprompt`: the same as the command `softprompt`."""

from softprompt.cli.main import run

if __name__ == "__main__":
    run()
