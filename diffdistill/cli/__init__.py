"""`diffdistill ...`: thin. Nothing heavy is imported before a subcommand needs it."""
