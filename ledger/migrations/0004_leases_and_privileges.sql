-- Leases of holders that fell silent, came back late, or met a failover: what 0001 left open; and a
-- role that can do no more than the gateway must.


-- 1. Holders ----------------------------------------------------------------------------------------

-- A holder states its own times: how long it admits requests without an answer of the database, and
-- how long one of them may last. Whoever fences and reclaims it waits as long.
DROP FUNCTION ledger.register_holder(uuid, text);
CREATE FUNCTION ledger.register_holder(p_journal uuid, p_node text, p_validity_s integer DEFAULT 300,
                                       p_max_request_s integer DEFAULT 900) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE v_holder integer;
BEGIN
  UPDATE ledger.holder
     SET node_name = p_node, validity_s = p_validity_s, max_request_s = p_max_request_s
   WHERE journal_id = p_journal RETURNING holder_id INTO v_holder;
  IF NOT FOUND THEN
    INSERT INTO ledger.holder (journal_id, node_name, validity_s, max_request_s)
      VALUES (p_journal, p_node, p_validity_s, p_max_request_s)
      ON CONFLICT (journal_id) DO UPDATE SET node_name = excluded.node_name,
        validity_s = excluded.validity_s, max_request_s = excluded.max_request_s
      RETURNING holder_id INTO v_holder;
  END IF;
  INSERT INTO ledger.holder_progress (holder_id) VALUES (v_holder) ON CONFLICT DO NOTHING;
  RETURN v_holder;
END $$;

-- As in 0001; a holder's first session attests its leases, for it has none.
CREATE OR REPLACE FUNCTION ledger.open_session(p_holder integer, p_journal uuid,
  OUT epoch bigint, OUT state smallint, OUT applied_seq bigint,
  OUT lease_pool bigint[], OUT lease_outstanding bigint[])
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_epoch bigint;
  v_timeline text := substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8);
BEGIN
  UPDATE ledger.cluster c SET timeline = v_timeline, grants_enabled = c.synchronous_replication
   WHERE c.timeline IS DISTINCT FROM v_timeline;
  UPDATE ledger.holder h
     SET epoch = h.epoch + 1, state = CASE WHEN h.state = 3 THEN 3 ELSE 1 END, opened_at = now(),
         timeline = CASE WHEN h.epoch = 0 THEN v_timeline ELSE h.timeline END
   WHERE h.holder_id = p_holder AND h.journal_id = p_journal AND h.state IN (1, 2, 3)
   RETURNING h.epoch, h.state INTO v_epoch, state;
  IF NOT FOUND THEN
    RAISE EXCEPTION USING ERRCODE = 'LE006', MESSAGE = 'holder unknown or closed';
  END IF;
  epoch := v_epoch;
  UPDATE ledger.holder_progress p SET heartbeat = p.heartbeat + 1
   WHERE p.holder_id = p_holder RETURNING p.applied_seq INTO applied_seq;
  SELECT coalesce(array_agg(l.pool_id), '{}'), coalesce(array_agg(l.outstanding), '{}')
    INTO lease_pool, lease_outstanding
    FROM ledger.lease l WHERE l.holder_id = p_holder AND l.outstanding > 0;
END $$;

-- The end of a reclaimed holder that has posted everything: its journal is used no more.
CREATE FUNCTION ledger.close_holder(p_holder integer, p_epoch bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  UPDATE ledger.holder h SET state = 4
   WHERE h.holder_id = p_holder AND h.epoch = p_epoch AND h.state = 3;
  IF NOT FOUND THEN
    RAISE EXCEPTION USING ERRCODE = 'LE001', MESSAGE = 'stale epoch';
  END IF;
END $$;

-- As in 0001; a recall of credit that is gone is no more to be followed either.
CREATE OR REPLACE FUNCTION ledger.reclaim_holder(p_holder integer, p_epoch_seen bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE v_total bigint;
BEGIN
  PERFORM 1 FROM ledger.holder h
    WHERE h.holder_id = p_holder AND h.state = 2 AND h.epoch = p_epoch_seen FOR UPDATE;
  IF NOT FOUND THEN RETURN NULL; END IF;
  PERFORM 1 FROM ledger.pool p
    WHERE p.pool_id IN (SELECT l.pool_id FROM ledger.lease l
                         WHERE l.holder_id = p_holder
                           AND (l.outstanding > 0 OR l.pending <> 0 OR l.recall))
    ORDER BY p.pool_id FOR NO KEY UPDATE;
  WITH held AS (
    SELECT l.pool_id, l.outstanding AS amount FROM ledger.lease l
     WHERE l.holder_id = p_holder AND (l.outstanding > 0 OR l.pending <> 0 OR l.recall)
  ), leases AS (
    UPDATE ledger.lease l
       SET returned_total = l.returned_total + h.amount, outstanding = 0, pending = 0, recall = false
      FROM held h WHERE l.pool_id = h.pool_id AND l.holder_id = p_holder
    RETURNING h.pool_id, h.amount
  ), pools AS (
    UPDATE ledger.pool p SET available = p.available + l.amount, leased = p.leased - l.amount
      FROM leases l WHERE p.pool_id = l.pool_id AND l.amount > 0
    RETURNING l.amount
  )
  SELECT coalesce(sum(amount), 0) INTO v_total FROM pools;
  UPDATE ledger.holder SET state = 3 WHERE holder_id = p_holder;
  RETURN v_total;
END $$;

-- As in 0001; who has not answered a recall yet still counts as recalled: whoever asks again meanwhile
-- is not to be told that there is nothing.
CREATE OR REPLACE FUNCTION ledger.grant_lease(p_holder integer, p_epoch bigint,
                                   l_pool bigint[], l_need bigint[], l_want bigint[])
RETURNS TABLE (pool_id bigint, granted bigint, outstanding bigint, spent_total bigint,
               available bigint, balance bigint, status smallint, recall boolean, recalled integer)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_epoch   bigint;
  v_state   smallint;
  v_found   integer;
  v_enabled boolean := (SELECT c.grants_enabled FROM ledger.cluster c);
  r         record;
BEGIN
  SELECT h.epoch, h.state INTO v_epoch, v_state
    FROM ledger.holder h WHERE h.holder_id = p_holder FOR SHARE;
  IF v_epoch IS DISTINCT FROM p_epoch OR v_state <> 1 THEN
    RAISE EXCEPTION USING ERRCODE = 'LE001', MESSAGE = 'stale epoch';
  END IF;
  PERFORM 1 FROM ledger.pool p WHERE p.pool_id = ANY (l_pool) ORDER BY p.pool_id FOR NO KEY UPDATE;
  GET DIAGNOSTICS v_found = ROW_COUNT;
  IF v_found <> cardinality(l_pool) THEN
    RAISE EXCEPTION USING ERRCODE = 'LE004', MESSAGE = 'unknown or duplicate pool';
  END IF;
  FOR r IN
    SELECT p.pool_id, p.status, p.available + p.credit_limit AS cap, p.funded - p.spent AS balance,
           CASE WHEN v_enabled AND p.status = 1
                     AND (p.valid_until IS NULL OR p.valid_until > clock_timestamp())
                THEN ledger.grant_amount(p.available + p.credit_limit, u.need, u.want)
                ELSE 0 END AS gr
      FROM unnest(l_pool, l_need, l_want) AS u(pool_id, need, want)
      JOIN ledger.pool p ON p.pool_id = u.pool_id
     ORDER BY p.pool_id
  LOOP
    pool_id := r.pool_id; granted := r.gr; available := r.cap - r.gr; balance := r.balance;
    status := r.status; recalled := 0; outstanding := 0; spent_total := 0; recall := false;
    IF r.gr > 0 THEN
      UPDATE ledger.pool p SET available = p.available - r.gr, leased = p.leased + r.gr
       WHERE p.pool_id = r.pool_id;
      INSERT INTO ledger.lease AS l (pool_id, holder_id, outstanding, granted_total)
        VALUES (r.pool_id, p_holder, r.gr, r.gr)
      ON CONFLICT (pool_id, holder_id) DO UPDATE
        SET outstanding = l.outstanding + r.gr, granted_total = l.granted_total + r.gr;
    ELSIF r.status = 1 THEN
      UPDATE ledger.lease l SET recall = true
       WHERE l.pool_id = r.pool_id AND l.holder_id <> p_holder
         AND l.outstanding > l.pending AND NOT l.recall;
      IF FOUND THEN PERFORM pg_notify('ledger_recall', r.pool_id::text); END IF;
      SELECT count(*) INTO recalled FROM ledger.lease l
       WHERE l.pool_id = r.pool_id AND l.holder_id <> p_holder
         AND l.outstanding > l.pending AND l.recall;
    END IF;
    SELECT l.outstanding, l.spent_total, l.recall INTO outstanding, spent_total, recall
      FROM ledger.lease l WHERE l.pool_id = r.pool_id AND l.holder_id = p_holder;
    outstanding := coalesce(outstanding, 0);
    spent_total := coalesce(spent_total, 0);
    recall := coalesce(recall, false);
    RETURN NEXT;
  END LOOP;
END $$;

-- When something last arrived, for people to look at: nothing is decided by it.
ALTER TABLE ledger.holder_progress ADD seen_at timestamptz NOT NULL DEFAULT now();
CREATE FUNCTION ledger.note_arrival() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.seen_at := clock_timestamp();
  RETURN NEW;
END $$;
CREATE TRIGGER holder_progress_arrival BEFORE UPDATE ON ledger.holder_progress
  FOR EACH ROW EXECUTE FUNCTION ledger.note_arrival();


-- 2. Credit that was granted twice --------------------------------------------------------------------

-- A failover that lost grants lets the same credit be held twice. It is not known yet whether it will
-- be spent twice; `overgranted` is how far available credit was taken below the limit that way. What
-- is returned or paid in comes first; only what the customer has spent beyond all of its credit is
-- ours to bear (code 12).
ALTER TABLE ledger.pool ADD overgranted bigint NOT NULL DEFAULT 0 CHECK (overgranted >= 0);

CREATE FUNCTION ledger.book_failover_loss() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  v_loss bigint := least(NEW.overgranted, greatest(NEW.spent - NEW.funded - NEW.credit_limit, 0));
BEGIN
  NEW.funded := NEW.funded + v_loss;
  NEW.available := NEW.available + v_loss;
  NEW.overgranted := least(NEW.overgranted - v_loss,
                           greatest(-NEW.available - NEW.credit_limit, 0));
  IF v_loss > 0 THEN
    INSERT INTO ledger.transfer (code, debit_account_id, credit_account_id, amount, account_id)
      VALUES (12, 12, NEW.gl_account_id, v_loss, NEW.account_id);
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER pool_overgranted BEFORE UPDATE ON ledger.pool
  FOR EACH ROW WHEN (NEW.overgranted > 0) EXECUTE FUNCTION ledger.book_failover_loss();

-- After a failover that lost grants: each lease becomes at least what the holder really holds. A pool
-- that was lost too is left out; there is nothing to take its credit from.
CREATE OR REPLACE FUNCTION ledger.reattest(p_holder integer, p_epoch bigint,
                                           l_pool bigint[], l_held bigint[]) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE v_total bigint;
BEGIN
  PERFORM 1 FROM ledger.holder h
    WHERE h.holder_id = p_holder AND h.epoch = p_epoch AND h.state = 1 FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION USING ERRCODE = 'LE001', MESSAGE = 'stale epoch';
  END IF;
  PERFORM 1 FROM ledger.pool p WHERE p.pool_id = ANY (l_pool) ORDER BY p.pool_id FOR NO KEY UPDATE;
  INSERT INTO ledger.lease (pool_id, holder_id)
    SELECT p.pool_id, p_holder FROM ledger.pool p WHERE p.pool_id = ANY (l_pool)
    ON CONFLICT DO NOTHING;
  WITH lost AS (
    SELECT u.pool_id, u.held - l.outstanding AS amount
      FROM unnest(l_pool, l_held) AS u(pool_id, held)
      JOIN ledger.lease l ON l.pool_id = u.pool_id AND l.holder_id = p_holder
     WHERE u.held > l.outstanding
  ), leases AS (
    UPDATE ledger.lease l
       SET outstanding = l.outstanding + d.amount, granted_total = l.granted_total + d.amount
      FROM lost d WHERE l.pool_id = d.pool_id AND l.holder_id = p_holder
    RETURNING l.pool_id, d.amount
  ), pools AS (
    UPDATE ledger.pool p
       SET available = p.available - l.amount, leased = p.leased + l.amount,
           overgranted = p.overgranted
             + CASE p.kind WHEN 1 THEN greatest(l.amount - p.available - p.credit_limit, 0)
                                     - greatest(-p.available - p.credit_limit, 0) ELSE 0 END
      FROM leases l WHERE p.pool_id = l.pool_id
    RETURNING l.amount
  )
  SELECT coalesce(sum(amount), 0) INTO v_total FROM pools;
  UPDATE ledger.holder h SET timeline = (SELECT c.timeline FROM ledger.cluster c)
   WHERE h.holder_id = p_holder;
  RETURN v_total;
END $$;


-- 3. Least privilege ------------------------------------------------------------------------------------

-- The gateway works as farebox_app: it reads the tables and calls the functions, which do with their
-- owner's rights the little that may be done to the books. Nobody writes the ledger's tables directly.
-- Roles belong to the whole server, whose other databases may make this one at the same moment. Where
-- we may not make it, the user we were given does the work, as `farebox check` says.
DO $$
BEGIN
  CREATE ROLE farebox_app NOLOGIN;
EXCEPTION
  WHEN duplicate_object OR unique_violation THEN NULL;
  WHEN insufficient_privilege THEN RAISE NOTICE 'no role farebox_app: %', SQLERRM;
END $$;

-- Whoever migrates is the user the gateway connects as; superusers are members of every role.
DO $$
BEGIN
  IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
     AND EXISTS (SELECT FROM pg_roles WHERE rolname = 'farebox_app') THEN
    EXECUTE format('GRANT farebox_app TO %I', current_user);
  END IF;
EXCEPTION
  WHEN unique_violation THEN NULL;
  WHEN insufficient_privilege THEN RAISE NOTICE 'no member of farebox_app: %', SQLERRM;
END $$;

-- Grants to the role, if there is one, what is said here: also for the migrations to come.
CREATE FUNCTION farebox.allow(p_privileges text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'farebox_app') THEN
    EXECUTE format('GRANT %s TO farebox_app', p_privileges);
  END IF;
END $$;

-- The same for the tables that later migrations make in this schema.
CREATE FUNCTION farebox.allow_on_new_tables(p_schema name, p_privileges text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'farebox_app') THEN
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT %s ON TABLES TO farebox_app',
                   p_schema, p_privileges);
  END IF;
END $$;

-- To be called at the end of a migration that makes functions: those that read or write tables do so
-- as their owner, with a search path that nobody can put anything into, and only for the role.
CREATE FUNCTION farebox.secure_functions() RETURNS void LANGUAGE plpgsql AS $$
DECLARE r record;
BEGIN
  FOR r IN
    SELECT p.oid::regprocedure AS signature
      FROM pg_proc p
     WHERE p.pronamespace IN ('ledger'::regnamespace, 'directory'::regnamespace, 'stored'::regnamespace)
       AND p.provolatile = 'v' AND NOT p.prosecdef
  LOOP
    EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = pg_catalog, pg_temp', r.signature);
  END LOOP;
  REVOKE ALL ON ALL FUNCTIONS IN SCHEMA farebox, ledger, directory, stored FROM PUBLIC;
  PERFORM farebox.allow('EXECUTE ON ALL FUNCTIONS IN SCHEMA ledger, directory, stored');
END $$;

-- All that the role may do. Called once more where the role was made after the migrations.
CREATE FUNCTION farebox.grant_privileges() RETURNS void LANGUAGE plpgsql AS $$
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
END $$;

REVOKE ALL ON SCHEMA farebox, ledger, directory, stored FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA farebox, ledger, directory, stored FROM PUBLIC;
SELECT farebox.grant_privileges();
