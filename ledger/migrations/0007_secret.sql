-- All gateways of a database need the same secret: keys are found by a hash that it keys, and stored
-- answers are sealed under it. The first one leaves a mark of its secret here, so that whoever comes
-- with another is told, instead of refusing every key.

CREATE TABLE directory.secret (
  one_row   boolean     PRIMARY KEY DEFAULT true CHECK (one_row),
  mark      bytea       NOT NULL CHECK (octet_length(mark) = 32),
  marked_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN directory.secret.mark IS 'a hash that the secret keys; it tells nothing of it';

-- Whether this is the mark of the database's secret; the first that comes is.
CREATE FUNCTION directory.claim_secret(p_mark bytea) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO directory.secret (mark) VALUES (p_mark) ON CONFLICT DO NOTHING;
  RETURN EXISTS (SELECT FROM directory.secret s WHERE s.mark = p_mark);
END $$;

SELECT farebox.secure_functions();
