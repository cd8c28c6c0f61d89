from stabkit.cli import main

raise SystemExit(main())
