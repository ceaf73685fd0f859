-- Answers that are kept for the Idempotency-Key that came with their request: a retry gets the same
-- answer, and is charged nothing.
--
-- The rule that everything rests on: a request with a key is charged only after its row has left
-- `running`, in a transaction of its own. Whoever finds a row that still says `running` knows that
-- nothing was charged; whoever takes it over makes sure that nothing will be, since the request
-- that held it finds its id gone and gives up its charge.

-- state 1 running · 2 answered, content is the answer · 3 answered, the answer is not here
--
-- A running row is stale when its request must have ended, whatever became of its gateway. Content
-- is sealed with the project's key; fingerprint is a keyed hash of what was asked.
CREATE TABLE stored.answer (
  account_id  bigint      NOT NULL REFERENCES directory.account,
  key         text        COLLATE "C" NOT NULL CHECK (octet_length(key) BETWEEN 1 AND 255),
  project_id  bigint      NOT NULL REFERENCES directory.project,
  key_id      bigint      NOT NULL,
  request_id  uuid        NOT NULL,
  fingerprint bytea       NOT NULL CHECK (octet_length(fingerprint) = 32),
  state       smallint    NOT NULL DEFAULT 1 CHECK (state IN (1, 2, 3)),
  begun_at    timestamptz NOT NULL,
  stale_at    timestamptz NOT NULL,
  expires_at  timestamptz NOT NULL,
  response_id text        COLLATE "C",
  content     bytea,
  PRIMARY KEY (account_id, key),
  CHECK ((state = 2) = (content IS NOT NULL))
);
CREATE INDEX answer_expiry ON stored.answer (expires_at);
CREATE INDEX answer_project ON stored.answer (project_id, response_id);
-- Sealed bytes cannot be compressed.
ALTER TABLE stored.answer ALTER content SET STORAGE EXTERNAL;
COMMENT ON COLUMN stored.answer.key_id IS 'of stored.project_key, which goes with its project';
COMMENT ON COLUMN stored.answer.response_id IS 'the kept response that this answer is, if it is one';

-- Claims a key for p_request and returns its row: the caller's own where that has its request id,
-- else whose it is. What has expired is replaced; a stale row is taken over by the same request of
-- the same project. Should the books show that a stale one was charged after all (this database was
-- set back), it counts as answered. Called twice it returns the same.
CREATE FUNCTION stored.claim_answer(
  p_account bigint, p_key text, p_project bigint, p_key_id bigint, p_request uuid,
  p_fingerprint bytea, p_now timestamptz, p_stale timestamptz, p_expires timestamptz)
RETURNS SETOF stored.answer
LANGUAGE plpgsql AS $$
DECLARE v_row stored.answer; v_free boolean;
BEGIN
  LOOP
    INSERT INTO stored.answer (account_id, key, project_id, key_id, request_id, fingerprint,
                               begun_at, stale_at, expires_at)
      VALUES (p_account, p_key, p_project, p_key_id, p_request, p_fingerprint,
              p_now, p_stale, p_expires)
      ON CONFLICT DO NOTHING;
    SELECT * INTO v_row FROM stored.answer a
      WHERE a.account_id = p_account AND a.key = p_key FOR UPDATE;
    EXIT WHEN FOUND;  -- else it was removed just now
  END LOOP;
  v_free := v_row.expires_at <= p_now;
  IF NOT v_free AND v_row.state = 1 AND v_row.stale_at <= p_now
     AND v_row.project_id = p_project AND v_row.fingerprint = p_fingerprint THEN
    v_free := NOT EXISTS (
      SELECT FROM ledger.usage_event e
       WHERE e.account_id = p_account AND e.recorded_at >= v_row.begun_at - interval '1 day'
         AND e.request_id = v_row.request_id AND e.charge > 0);
    IF NOT v_free THEN
      UPDATE stored.answer a SET state = 3
        WHERE a.account_id = p_account AND a.key = p_key RETURNING * INTO v_row;
    END IF;
  END IF;
  IF v_free THEN
    UPDATE stored.answer a
      SET (project_id, key_id, request_id, fingerprint, state, begun_at, stale_at, expires_at,
           response_id, content) =
          (p_project, p_key_id, p_request, p_fingerprint, 1, p_now, p_stale, p_expires, NULL, NULL)
      WHERE a.account_id = p_account AND a.key = p_key RETURNING * INTO v_row;
  END IF;
  RETURN NEXT v_row;
END $$;

-- Deletes up to p_rows answers that have expired by p_now or whose project was deleted, as
-- stored.purge does for responses. A request that still runs finds its row gone and is not charged.
CREATE FUNCTION stored.purge_answers(p_now timestamptz, p_rows integer) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE v_gone bigint; v_more bigint;
BEGIN
  DELETE FROM stored.answer a USING (
    SELECT e.account_id, e.key FROM stored.answer e
     WHERE e.expires_at <= p_now LIMIT p_rows FOR UPDATE SKIP LOCKED) AS due
   WHERE (a.account_id, a.key) = (due.account_id, due.key);
  GET DIAGNOSTICS v_gone = ROW_COUNT;
  DELETE FROM stored.answer a USING (
    SELECT e.account_id, e.key FROM directory.project p
      JOIN stored.answer e ON e.project_id = p.project_id
     WHERE p.deleted_at IS NOT NULL LIMIT p_rows - v_gone FOR UPDATE OF e SKIP LOCKED) AS due
   WHERE (a.account_id, a.key) = (due.account_id, due.key);
  GET DIAGNOSTICS v_more = ROW_COUNT;
  RETURN v_gone + v_more;
END $$;

SELECT farebox.secure_functions();
