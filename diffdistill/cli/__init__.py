"""The command line: it parses and checks options, and calls the library. Heavy packages are imported when needed."""
