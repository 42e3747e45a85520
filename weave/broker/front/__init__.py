"""The clients' side: connections, incoming requests and outgoing answers. Imports schedule and admission."""
