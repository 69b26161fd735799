"""The training command: `python -m ijepa_jax.main --config=configs/NAME.py`."""

import sys

from ijepa_jax import errors
from ijepa_jax.config import command


def main() -> None:
  """Parses the command line and trains; see `errors` for exit codes."""
  with errors.exit_cleanly():
    config, workdir = command.parse(sys.argv)
    # After parsing: JAX takes seconds to import, a typo should not.
    from ijepa_jax import distributed, train

    with distributed.joined(config):
      train.train(config, workdir)


if __name__ == '__main__':
  main()
