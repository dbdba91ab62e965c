"""The API over real sockets, with a scripted gateway in place of Redis."""
