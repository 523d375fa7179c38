"""Downloads of model files: several ranges at once, resumed after a kill, hashed on the way, whole or not at all.

download ──▶ attempt ──┬─▶ route        redirects, fresh addresses, what the server states of the file
                       ├─▶ stream ×4    ranges of the ledger, each filled by a request at a time
                       └─▶ part         the bytes in place, and their journal
scheduler: which file is next, and which stream may send a request
"""
