"""Proxy: the data plane. One exchange, from its first byte to settled.

Files in the order in which a request meets them: `listener` (accept), `connection` (HTTP/1.1 over a
`transport`, with `request_head` and `answer_head`), `exchange` (the life of one request: start
here), `authenticate`, `admit` (with `memory`), `idempotency` (with `answers`, where they are kept,
and `presence`, for when their maker dies), `route`, `calls` (the request as each candidate gets
it), `need` (with `ceilings`) and `reserve`, `fallback` (with `balance`, `turn` and `budget`, which
decide whom to ask, and `refusal`, for where nobody serves), `attempt`, `upstream` (with `api_keys`,
`endpoint`, `pool`, `upstream_connection`, `upstream_request`, `upstream_head`, `upstream_body`,
`upstream_response`, `upstream_errors`, `transport` and `resolve`), `relay` (with `allowance` and
`outputs`, for streams that hold less than their cap), `settle`, `record`.

What is known of upstreams, by all requests and in all workers: `health` (start here), of `seat`,
`breaker`, `circuit` (the rules) and `shared_rows`, by the table in `verdicts`; how soon they
answer, `latency` (a `histogram`); what operators are told of them, `notices`.

What is the console's goes to its process: `control` (with `forwarded`, for where it comes from).

What a request may ask for beside an answer: `models`, `count` (tokens), `receipts`, `stored` and
`state` (responses that are kept, sealed by `sealing`). What all exchanges share is in `gateway`:
`deadlines`, `watch` (clients that leave), `keep_alive`, `metrics` (with `figures` and `tallies`);
`settings` and `database` (for what a request itself has to wait for) are used throughout.
"""
