"""``python -m rdc`` is the command ``rdc``."""

__all__ = ["run"]


def run() -> None:
    """Run the command ``rdc``, which may be interrupted from the first import on."""
    try:
        from rdc.cli import main

        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    run()
