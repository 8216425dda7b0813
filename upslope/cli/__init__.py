"""The command: `upslope VERB …`. Faces only: everything here reads or calls what the libraries offer."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point: runs the command line; an error the user can mend is at most six lines, a traceback only with --debug."""
    from pydantic import ValidationError

    from upslope.cli.app import app
    from upslope.config import UsageError, explain_validation

    debug = "--debug" in sys.argv or bool(os.environ.get("UPSLOPE_DEBUG"))
    argv = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        app(args=argv, standalone_mode=True, prog_name="upslope")
    except UsageError as e:
        if debug:
            raise
        fail(str(e))
        sys.exit(2)
    except ValidationError as e:
        if debug:
            raise
        fail(explain_validation(e))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(75)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except Exception as e:
        if debug:
            raise
        fail(f"{type(e).__name__}: {e}\nthis is a defect of upslope; --debug shows where")
        sys.exit(1)


def fail(text: str) -> None:
    """Prints an error, at most six lines, without what must not leave this machine."""
    from upslope.machine.privacy import redact

    lines = redact(text).splitlines() or ["unknown error"]
    print("\n".join(["error: " + lines[0], *(f"  {line}" for line in lines[1:6])]), file=sys.stderr)
