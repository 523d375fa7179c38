"""Addresses, retries and HTTP, for every part that talks to another machine."""
