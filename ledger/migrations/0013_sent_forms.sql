-- Forms that make something and show it once (a key, an invitation) carry a random token, and count
-- only the first time that they are sent: a page that is reloaded sends its form again.

CREATE TABLE console.sent_form (
  token_hash bytea       PRIMARY KEY CHECK (octet_length(token_hash) = 32),
  sent_at    timestamptz NOT NULL
);
CREATE INDEX sent_form_time ON console.sent_form (sent_at);
