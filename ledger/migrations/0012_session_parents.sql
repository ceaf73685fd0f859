-- A token for programs is a session that was made from another one. It ends when that one does: who
-- signs out means all of it.

ALTER TABLE console.session ADD COLUMN made_from bytea REFERENCES console.session ON DELETE CASCADE;
CREATE INDEX session_made_from ON console.session (made_from) WHERE made_from IS NOT NULL;
