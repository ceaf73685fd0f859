-- Keys that may manage keys, the keys that such a key has made, and keys that belong to a console
-- session, with which its tools call models.

-- scopes: what a key may do beside calling models; 'keys': make and revoke keys of its project.
-- made_by: the key that has made this one. It can do no more than that one: it ends with it, and
-- what it spends is taken from that one's budget as well.
-- user_id: whose sessions use this key; nobody else knows it.
ALTER TABLE directory.api_key
  ADD COLUMN scopes  text[] NOT NULL DEFAULT '{}' CHECK (scopes <@ ARRAY['keys']),
  ADD COLUMN made_by bigint REFERENCES directory.api_key,
  ADD COLUMN user_id bigint REFERENCES console.user,
  ADD CHECK (made_by IS NULL OR scopes = '{}'),
  ADD CHECK (user_id IS NULL OR made_by IS NULL AND scopes = '{}');
CREATE INDEX api_key_made_by ON directory.api_key (made_by) WHERE made_by IS NOT NULL;
CREATE INDEX api_key_user ON directory.api_key (user_id, project_id) WHERE user_id IS NOT NULL;

-- The key of a session, good until p_expires_at: a new one, or that of an earlier session of the same
-- user which has ended, so that there are never more of them than sessions at a time. One that was
-- limited since stays as it is. Nothing where the session's key was revoked.
CREATE FUNCTION directory.session_key(p_project bigint, p_user bigint, p_hash bytea, p_name text,
                                      p_expires_at timestamptz, p_now timestamptz) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE v_key bigint; v_revoked boolean;
BEGIN
  PERFORM 1 FROM directory.change FOR UPDATE;
  SELECT k.key_id, k.revoked_at IS NOT NULL INTO v_key, v_revoked
    FROM directory.api_key k WHERE k.key_hash = p_hash;
  IF v_revoked THEN RETURN NULL; END IF;
  IF v_key IS NULL THEN
    SELECT k.key_id INTO v_key FROM directory.api_key k
     WHERE k.user_id = p_user AND k.project_id = p_project AND k.revoked_at IS NULL
       AND k.expires_at < p_now AND k.budget IS NULL AND k.models = '{}'
     ORDER BY k.key_id LIMIT 1;
  END IF;
  IF v_key IS NULL THEN
    INSERT INTO directory.api_key (project_id, name, key_hash, expires_at, user_id)
      VALUES (p_project, p_name, p_hash, p_expires_at, p_user) RETURNING key_id INTO v_key;
  ELSE
    UPDATE directory.api_key k SET key_hash = p_hash, name = p_name, expires_at = p_expires_at
     WHERE k.key_id = v_key;
  END IF;
  RETURN v_key;
END $$;


-- Least privilege -----------------------------------------------------------------------------------

-- As in 0008; but what a key is, whose it is and what it was made for is never changed any more.
CREATE OR REPLACE FUNCTION farebox.grant_privileges() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM farebox.secure_functions();
  PERFORM farebox.allow(privileges) FROM unnest(ARRAY[
    'USAGE ON SCHEMA ledger, directory, stored',
    'SELECT ON ALL TABLES IN SCHEMA ledger, directory, stored',
    'INSERT, UPDATE ON directory.account, directory.project',
    'INSERT ON directory.api_key',
    'UPDATE (name, models, expires_at, revoked_at, budget_pool_id) ON directory.api_key',
    'INSERT ON directory.model, directory.provider, directory.price',
    'INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA stored'
  ]) AS privileges;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'farebox_app') THEN
    REVOKE INSERT, UPDATE, DELETE ON stored.project_key FROM farebox_app;  -- functions do that
  END IF;
  PERFORM farebox.allow_on_new_tables('ledger', 'SELECT'),
          farebox.allow_on_new_tables('directory', 'SELECT'),
          farebox.allow_on_new_tables('stored', 'SELECT, INSERT, UPDATE, DELETE');
  PERFORM farebox.grant_console();
END $$;

DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'farebox_app') THEN
    REVOKE UPDATE ON directory.api_key FROM farebox_app;
  END IF;
END $$;
SELECT farebox.grant_privileges();
