"""Downloads of model files: several ranges at once, resumed after a kill, hashed on the way, whole or not at all.

download ──▶ attempt ──┬─▶ probe      what the server says of the file
                       ├─▶ stream ×4  ──▶ route (redirects, fresh addresses) ──▶ wire (HTTP)
                       ├─▶ part, journal, ledger   the bytes in place, and what is known of them
                       └─▶ follower   the hashes
gate: how many requests at once, of all downloads, and whose turn it is
"""
