-- Who uses the console: people, the accounts they belong to, how they are signed in, and what they
-- have changed.
--
-- Whatever lets somebody in (a session, a sign-in link, an invitation) is kept as a hash: a copy of
-- the database opens nothing. Times are given by whoever writes them, so that one clock decides.

CREATE SCHEMA console;
REVOKE ALL ON SCHEMA console FROM PUBLIC;


-- 1. People and roles -------------------------------------------------------------------------------

-- An issuer knows its people by `subject`; '' is this deployment itself, which knows its operator.
-- What is said of them is as it was when they were last seen; the address is in lower case.
CREATE TABLE console.user (
  user_id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  issuer      text        COLLATE "C" NOT NULL,
  subject     text        COLLATE "C" NOT NULL CHECK (subject <> ''),
  email       text        NOT NULL DEFAULT '' CHECK (email = lower(email)),
  name        text        NOT NULL DEFAULT '',
  is_operator boolean     NOT NULL DEFAULT false,
  created_at  timestamptz NOT NULL,
  UNIQUE (issuer, subject),
  CHECK (NOT is_operator OR issuer = '')
);
COMMENT ON COLUMN console.user.email IS 'empty where the issuer has not said one that it vouches for';

CREATE TABLE console.member (
  account_id bigint      NOT NULL REFERENCES directory.account,
  user_id    bigint      NOT NULL REFERENCES console.user,
  role       text        NOT NULL CHECK (role IN ('owner', 'admin', 'developer', 'viewer')),
  created_at timestamptz NOT NULL,
  PRIMARY KEY (account_id, user_id)
);
CREATE INDEX member_user ON console.member (user_id);

-- Accepted or revoked ones stay as they are: they say how somebody came in.
CREATE TABLE console.invitation (
  invitation_id bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  account_id    bigint      NOT NULL REFERENCES directory.account,
  email         text        NOT NULL CHECK (email = lower(email) AND email <> ''),
  role          text        NOT NULL CHECK (role IN ('owner', 'admin', 'developer', 'viewer')),
  token_hash    bytea       NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
  invited_by    bigint      NOT NULL REFERENCES console.user,
  created_at    timestamptz NOT NULL,
  expires_at    timestamptz NOT NULL,
  accepted_at   timestamptz,
  revoked_at    timestamptz,
  CHECK (accepted_at IS NULL OR revoked_at IS NULL)
);
CREATE INDEX invitation_account ON console.invitation (account_id, invitation_id);


-- 2. Signing in --------------------------------------------------------------------------------------

-- seen_at is for the idle expiry and written once a minute at most.
CREATE TABLE console.session (
  token_hash bytea       PRIMARY KEY CHECK (octet_length(token_hash) = 32),
  user_id    bigint      NOT NULL REFERENCES console.user,
  address    text        NOT NULL,
  created_at timestamptz NOT NULL,
  seen_at    timestamptz NOT NULL,
  expires_at timestamptz NOT NULL
);
CREATE INDEX session_of_user ON console.session (user_id);
CREATE INDEX session_expiry ON console.session (expires_at);

-- Sign in the operator, once.
CREATE TABLE console.sign_in_link (
  token_hash bytea       PRIMARY KEY CHECK (octet_length(token_hash) = 32),
  created_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL
);


-- 3. What was changed ----------------------------------------------------------------------------------

-- Who did what to what, and from where. `actor` is what they were called then; whoever is no user
-- (an API key) has a name only. Written in the transaction of the change, and never changed.
CREATE TABLE console.audit (
  audit_id   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at         timestamptz NOT NULL DEFAULT clock_timestamp(),
  account_id bigint      REFERENCES directory.account,
  user_id    bigint      REFERENCES console.user,
  actor      text        NOT NULL,
  address    text        NOT NULL,
  action     text        NOT NULL CHECK (action <> ''),
  target     text        NOT NULL,
  detail     jsonb       NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_account ON console.audit (account_id, audit_id);
COMMENT ON COLUMN console.audit.account_id IS 'none where it concerns no single account';
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON console.audit
  FOR EACH ROW EXECUTE FUNCTION ledger.forbid_change();


-- 4. Least privilege -------------------------------------------------------------------------------------

-- As in 0004, also for the console's functions.
CREATE OR REPLACE FUNCTION farebox.secure_functions() RETURNS void LANGUAGE plpgsql AS $$
DECLARE r record;
BEGIN
  FOR r IN
    SELECT p.oid::regprocedure AS signature
      FROM pg_proc p
     WHERE p.pronamespace IN ('ledger'::regnamespace, 'directory'::regnamespace,
                              'stored'::regnamespace, 'console'::regnamespace)
       AND p.provolatile = 'v' AND NOT p.prosecdef
  LOOP
    EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = pg_catalog, pg_temp', r.signature);
  END LOOP;
  REVOKE ALL ON ALL FUNCTIONS IN SCHEMA farebox, ledger, directory, stored, console FROM PUBLIC;
  PERFORM farebox.allow('EXECUTE ON ALL FUNCTIONS IN SCHEMA ledger, directory, stored, console');
END $$;

-- What the role may do to the console's tables, now and whenever a migration has made more of them.
-- The audit log is only added to.
CREATE FUNCTION farebox.grant_console() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM farebox.allow('USAGE ON SCHEMA console'),
          farebox.allow('SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA console');
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'farebox_app') THEN
    REVOKE UPDATE, DELETE ON console.audit FROM farebox_app;
  END IF;
  PERFORM farebox.allow_on_new_tables('console', 'SELECT, INSERT, UPDATE, DELETE');
END $$;

-- As in 0004, and the console's.
CREATE OR REPLACE FUNCTION farebox.grant_privileges() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM farebox.secure_functions();
  PERFORM farebox.allow(privileges) FROM unnest(ARRAY[
    'USAGE ON SCHEMA ledger, directory, stored',
    'SELECT ON ALL TABLES IN SCHEMA ledger, directory, stored',
    'INSERT, UPDATE ON directory.account, directory.project, directory.api_key',
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

SELECT farebox.grant_privileges();
