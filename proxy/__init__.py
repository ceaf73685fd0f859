"""Proxy: the data plane. One exchange, from its first byte to settled.

Files in the order in which a request meets them: `listener` (accept), `connection` (HTTP/1.1 over
trio), `exchange` (the life of one request: start here), `surfaces`, `authenticate`, `admit`,
`route`, `reserve`, `fallback`, `upstream`, `relay`, `settle`, `record`.
"""
