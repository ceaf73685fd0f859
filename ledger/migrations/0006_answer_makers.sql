-- A row that says `running` names who makes its answer: its maker holds the advisory lock of that
-- number for as long as its process lives. Where nobody holds it, the request has died with its
-- maker, and a retry need not wait until the row is stale.

ALTER TABLE stored.answer ADD maker bigint;
COMMENT ON COLUMN stored.answer.maker IS 'the advisory lock that its process holds; null: unknown';

-- As in 0005, for a p_maker, where it is known; whatever died is taken over like what is stale. The
-- default is for gateways that are older than this.
DROP FUNCTION stored.claim_answer(bigint, text, bigint, bigint, uuid, bytea, timestamptz, timestamptz,
                                  timestamptz);
CREATE FUNCTION stored.claim_answer(
  p_account bigint, p_key text, p_project bigint, p_key_id bigint, p_request uuid,
  p_fingerprint bytea, p_now timestamptz, p_stale timestamptz, p_expires timestamptz,
  p_maker bigint DEFAULT NULL)
RETURNS SETOF stored.answer
LANGUAGE plpgsql AS $$
DECLARE v_row stored.answer; v_free boolean;
BEGIN
  LOOP
    INSERT INTO stored.answer (account_id, key, project_id, key_id, request_id, fingerprint,
                               begun_at, stale_at, expires_at, maker)
      VALUES (p_account, p_key, p_project, p_key_id, p_request, p_fingerprint,
              p_now, p_stale, p_expires, p_maker)
      ON CONFLICT DO NOTHING;
    SELECT * INTO v_row FROM stored.answer a
      WHERE a.account_id = p_account AND a.key = p_key FOR UPDATE;
    EXIT WHEN FOUND;  -- else it was removed just now
  END LOOP;
  v_free := v_row.expires_at <= p_now;
  IF NOT v_free AND v_row.state = 1 AND v_row.request_id <> p_request
     AND v_row.project_id = p_project AND v_row.fingerprint = p_fingerprint
     -- Shared, so that any number can ask at once; for no longer than this transaction.
     AND (v_row.stale_at <= p_now OR pg_try_advisory_xact_lock_shared(v_row.maker)) THEN
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
           response_id, content, maker) =
          (p_project, p_key_id, p_request, p_fingerprint, 1, p_now, p_stale, p_expires, NULL, NULL,
           p_maker)
      WHERE a.account_id = p_account AND a.key = p_key RETURNING * INTO v_row;
  END IF;
  RETURN NEXT v_row;
END $$;

SELECT farebox.secure_functions();
