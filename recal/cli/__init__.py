"""The command line: one module a command, which parses, calls the library and prints."""
