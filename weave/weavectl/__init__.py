"""weavectl: the command line on the client."""
