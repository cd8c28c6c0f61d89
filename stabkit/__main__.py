from stabkit.cli import main

if __name__ == "__main__":  # processes of the analysis import this again
    raise SystemExit(main())
