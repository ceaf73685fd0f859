-- Who may spend: accounts, projects, keys and their budgets; and the names behind the numbers in
-- the books: models, providers, prices.
--
-- Deletion is soft. Every change of an account, project or key draws a number from one counter row
-- whose lock is held until commit: numbers become visible in their order, so a reader that asks for
-- "all above the last number I saw" misses nothing. The counter is locked before any other row.

CREATE SCHEMA directory;


-- 1. The change counter -------------------------------------------------------------------------

CREATE TABLE directory.change (
  one_row      boolean     PRIMARY KEY DEFAULT true CHECK (one_row),
  version      bigint      NOT NULL DEFAULT 0,
  budget_month timestamptz NOT NULL DEFAULT '-infinity'  -- monthly budgets are made up to this one
) WITH (fillfactor = 50);
INSERT INTO directory.change DEFAULT VALUES;

CREATE FUNCTION directory.lock_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM directory.change FOR UPDATE;
  RETURN NULL;
END $$;

CREATE FUNCTION directory.count_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE directory.change SET version = version + 1 RETURNING version INTO NEW.version;
  RETURN NEW;
END $$;


-- 2. Accounts, projects, keys -------------------------------------------------------------------------

-- status 1 open, 2 suspended (as the pool's)
CREATE TABLE directory.account (
  account_id bigint      GENERATED ALWAYS AS IDENTITY (MAXVALUE 1099511627775) PRIMARY KEY,
  name       text        COLLATE "C" NOT NULL UNIQUE,
  tier       text        NOT NULL DEFAULT '',
  status     smallint    NOT NULL DEFAULT 1 CHECK (status IN (1, 2)),
  created_at timestamptz NOT NULL DEFAULT now(),
  version    bigint      NOT NULL DEFAULT 0
);
CREATE INDEX account_version ON directory.account (version);

CREATE TABLE directory.project (
  project_id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  account_id     bigint      NOT NULL REFERENCES directory.account,
  name           text        COLLATE "C" NOT NULL,
  budget         bigint      CHECK (budget >= 0),
  budget_period  text        CHECK (budget_period = 'month'),
  budget_pool_id bigint      REFERENCES ledger.pool,
  created_at     timestamptz NOT NULL DEFAULT now(),
  deleted_at     timestamptz,
  version        bigint      NOT NULL DEFAULT 0,
  CHECK (budget IS NOT NULL OR budget_period IS NULL)
);
CREATE UNIQUE INDEX project_name ON directory.project (account_id, name) WHERE deleted_at IS NULL;
CREATE INDEX project_version ON directory.project (version);

CREATE TABLE directory.api_key (
  key_id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  project_id     bigint      NOT NULL REFERENCES directory.project,
  name           text        NOT NULL DEFAULT '',
  key_hash       bytea       NOT NULL UNIQUE CHECK (octet_length(key_hash) = 32),
  models         text[]      NOT NULL DEFAULT '{}',
  budget         bigint      CHECK (budget >= 0),
  budget_period  text        CHECK (budget_period = 'month'),
  budget_pool_id bigint      REFERENCES ledger.pool,
  created_at     timestamptz NOT NULL DEFAULT now(),
  expires_at     timestamptz,
  revoked_at     timestamptz,
  version        bigint      NOT NULL DEFAULT 0,
  CHECK (budget IS NOT NULL OR budget_period IS NULL)
);
CREATE INDEX api_key_project ON directory.api_key (project_id);
CREATE INDEX api_key_version ON directory.api_key (version);
COMMENT ON COLUMN directory.api_key.models IS 'empty: every model';
COMMENT ON COLUMN directory.api_key.key_hash IS 'keyed hash; the key itself is stored nowhere';

-- Which pool held the budget of a key or project in which period; lifetime budgets have one row.
CREATE TABLE directory.budget_pool (
  pool_id    bigint      PRIMARY KEY REFERENCES ledger.pool,
  project_id bigint      REFERENCES directory.project,
  key_id     bigint      REFERENCES directory.api_key,
  starts_at  timestamptz NOT NULL,
  CHECK ((project_id IS NULL) <> (key_id IS NULL)),
  UNIQUE (project_id, starts_at),
  UNIQUE (key_id, starts_at)
);

CREATE TRIGGER account_lock BEFORE INSERT OR UPDATE ON directory.account
  FOR EACH STATEMENT EXECUTE FUNCTION directory.lock_changes();
CREATE TRIGGER account_change BEFORE INSERT OR UPDATE ON directory.account
  FOR EACH ROW EXECUTE FUNCTION directory.count_change();
CREATE TRIGGER project_lock BEFORE INSERT OR UPDATE ON directory.project
  FOR EACH STATEMENT EXECUTE FUNCTION directory.lock_changes();
CREATE TRIGGER project_change BEFORE INSERT OR UPDATE ON directory.project
  FOR EACH ROW EXECUTE FUNCTION directory.count_change();
CREATE TRIGGER api_key_lock BEFORE INSERT OR UPDATE ON directory.api_key
  FOR EACH STATEMENT EXECUTE FUNCTION directory.lock_changes();
CREATE TRIGGER api_key_change BEFORE INSERT OR UPDATE ON directory.api_key
  FOR EACH ROW EXECUTE FUNCTION directory.count_change();

-- An account is never without its pool and its place in the chart of accounts.
CREATE FUNCTION directory.open_books() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE v_gl bigint;
BEGIN
  INSERT INTO ledger.gl_account (kind, owner_id, normal_side) VALUES (1, NEW.account_id, 'C')
    RETURNING gl_account_id INTO v_gl;
  INSERT INTO ledger.pool (pool_id, kind, account_id, gl_account_id, status)
    VALUES (NEW.account_id, 1, NEW.account_id, v_gl, NEW.status);
  RETURN NULL;
END $$;
CREATE TRIGGER account_books AFTER INSERT ON directory.account
  FOR EACH ROW EXECUTE FUNCTION directory.open_books();

-- Suspending an account suspends what it can spend from.
CREATE FUNCTION directory.follow_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE ledger.pool SET status = NEW.status WHERE pool_id = NEW.account_id AND status <> 3;
  RETURN NULL;
END $$;
CREATE TRIGGER account_status AFTER UPDATE OF status ON directory.account
  FOR EACH ROW WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION directory.follow_status();


-- 3. Budgets ----------------------------------------------------------------------------------------------

-- The pool of the period that p_starts_at opens ('-infinity': the owner's lifetime). It may be used
-- for a minute beyond its month, so that a request at midnight, admitted before every worker has
-- heard of the new pool, is not refused for nothing.
CREATE FUNCTION directory.open_budget(p_account bigint, p_project bigint, p_key bigint,
                                      p_budget bigint, p_starts_at timestamptz) RETURNS bigint
LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE v_pool bigint;
BEGIN
  INSERT INTO ledger.pool (pool_id, kind, account_id, funded, available, valid_until)
    VALUES (nextval('ledger.budget_pool_id'), 2, p_account, p_budget, p_budget,
            CASE WHEN isfinite(p_starts_at)
                 THEN p_starts_at + interval '1 month' + interval '1 minute' END)
    RETURNING pool_id INTO v_pool;
  INSERT INTO directory.budget_pool (pool_id, project_id, key_id, starts_at)
    VALUES (v_pool, p_project, p_key, p_starts_at);
  RETURN v_pool;
END $$;

-- Opens what is missing for the current month, once, and moves the counter on. p_now is an argument
-- for the tests' sake. Returns whether there was anything to do.
CREATE FUNCTION directory.roll_budgets(p_now timestamptz DEFAULT now()) RETURNS boolean
LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE v_month timestamptz := date_trunc('month', p_now);
BEGIN
  PERFORM 1 FROM directory.change WHERE budget_month < v_month FOR UPDATE;
  IF NOT FOUND THEN RETURN false; END IF;
  UPDATE directory.project p
     SET budget_pool_id = directory.open_budget(p.account_id, p.project_id, NULL, p.budget, v_month)
   WHERE p.budget_period = 'month' AND p.deleted_at IS NULL
     AND NOT EXISTS (SELECT 1 FROM directory.budget_pool b
                      WHERE b.project_id = p.project_id AND b.starts_at >= v_month);
  UPDATE directory.api_key k
     SET budget_pool_id = directory.open_budget(p.account_id, NULL, k.key_id, k.budget, v_month)
    FROM directory.project p
   WHERE p.project_id = k.project_id AND p.deleted_at IS NULL
     AND k.budget_period = 'month' AND k.revoked_at IS NULL
     AND NOT EXISTS (SELECT 1 FROM directory.budget_pool b
                      WHERE b.key_id = k.key_id AND b.starts_at >= v_month);
  UPDATE directory.change SET budget_month = v_month;
  RETURN true;
END $$;

-- A new project or key gets its first pool at once.
CREATE FUNCTION directory.first_period(p_period text) RETURNS timestamptz
LANGUAGE sql STABLE SET timezone = 'UTC' AS $$
  SELECT CASE p_period WHEN 'month' THEN date_trunc('month', now()) ELSE '-infinity' END
$$;


-- 4. Models, providers, prices ---------------------------------------------------------------------------------

CREATE TABLE directory.model (
  model_id   integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name       text        COLLATE "C" NOT NULL UNIQUE,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE directory.provider (
  provider_id integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name        text        COLLATE "C" NOT NULL UNIQUE,
  created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION directory.open_payable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO ledger.gl_account (kind, owner_id, normal_side) VALUES (2, NEW.provider_id, 'C');
  RETURN NULL;
END $$;
CREATE TRIGGER provider_books AFTER INSERT ON directory.provider
  FOR EACH ROW EXECUTE FUNCTION directory.open_payable();

-- Nano-dollars per 1,000,000 units of each component. A row is its content and never changes.
CREATE TABLE directory.price (
  price_id   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  model      text        COLLATE "C" NOT NULL,
  upstream   text        COLLATE "C" NOT NULL,  -- provider/model
  variant    text        COLLATE "C" NOT NULL,  -- long-context threshold and service tier
  components jsonb       NOT NULL,
  margin_bps integer     NOT NULL CHECK (margin_bps >= 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (model, upstream, variant, margin_bps, components)
);
CREATE TRIGGER price_append_only BEFORE UPDATE OR DELETE ON directory.price
  FOR EACH ROW EXECUTE FUNCTION ledger.forbid_change();
