-- The books: pools of credit, leases on them, usage, and the journal of transfers.
--
-- Amounts are integer nano-dollars. Isolation is READ COMMITTED: every decision is made on rows
-- locked in the same transaction. Lock order, everywhere: holder → holder_progress → pool in
-- ascending pool_id → lease (only under its pool's lock). Usage rows are inserted before any pool
-- is locked, so pool locks last for the short tail and the commit.

CREATE SCHEMA ledger;


-- 1. Chart of accounts --------------------------------------------------------------------------

CREATE TABLE ledger.gl_account (
  gl_account_id bigint   GENERATED ALWAYS AS IDENTITY (START WITH 1000) PRIMARY KEY,
  kind          smallint NOT NULL,
  owner_id      bigint   NOT NULL DEFAULT 0,
  normal_side   "char"   NOT NULL CHECK (normal_side IN ('D', 'C')),
  UNIQUE (kind, owner_id)
);
COMMENT ON TABLE ledger.gl_account IS
  'kind 1 customer_credit (owner: account), 2 provider_payable (owner: provider), others ours';

-- Our own accounts have the id of their kind.
INSERT INTO ledger.gl_account (gl_account_id, kind, normal_side) OVERRIDING SYSTEM VALUE VALUES
  (3, 3, 'C'),    -- margin_revenue
  (4, 4, 'D'),    -- stripe_clearing
  (5, 5, 'D'),    -- bank
  (6, 6, 'D'),    -- stripe_fees
  (7, 7, 'D'),    -- goodwill_adjustments
  (8, 8, 'D'),    -- promotions
  (9, 9, 'D'),    -- disputes
  (10, 10, 'D'),  -- unbilled_provider_cost
  (11, 11, 'D'),  -- overrun_loss
  (12, 12, 'D');  -- failover_loss

CREATE FUNCTION ledger.gl(p_kind smallint, p_owner bigint) RETURNS bigint
LANGUAGE sql STABLE AS $$
  SELECT gl_account_id FROM ledger.gl_account WHERE kind = p_kind AND owner_id = p_owner
$$;


-- 2. Credit pools ---------------------------------------------------------------------------------

-- kind 1: an account's prepaid balance, pool_id = account_id. kind 2: a budget, pool_id >= 2^40.
-- status 1 open, 2 suspended, 3 closed.
CREATE TABLE ledger.pool (
  pool_id        bigint   PRIMARY KEY,
  kind           smallint NOT NULL CHECK (kind IN (1, 2)),
  account_id     bigint   NOT NULL,
  gl_account_id  bigint   REFERENCES ledger.gl_account,
  funded         bigint   NOT NULL DEFAULT 0,
  available      bigint   NOT NULL DEFAULT 0,
  leased         bigint   NOT NULL DEFAULT 0,
  spent          bigint   NOT NULL DEFAULT 0,
  credit_limit   bigint   NOT NULL DEFAULT 0,
  status         smallint NOT NULL DEFAULT 1 CHECK (status IN (1, 2, 3)),
  valid_until    timestamptz,
  recharge_below bigint   NOT NULL DEFAULT 0,
  CHECK (funded = available + leased + spent),
  CHECK (leased >= 0 AND spent >= 0 AND credit_limit >= 0),
  CHECK ((kind = 1) = (gl_account_id IS NOT NULL)),
  CHECK ((kind = 2) = (pool_id >= 1099511627776))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX pool_account ON ledger.pool (account_id);

CREATE SEQUENCE ledger.budget_pool_id AS bigint START WITH 1099511627776 MINVALUE 1099511627776;


-- 3. Lease holders ----------------------------------------------------------------------------------

CREATE TABLE ledger.cluster (
  one_row                 boolean PRIMARY KEY DEFAULT true CHECK (one_row),
  timeline                text,
  synchronous_replication boolean NOT NULL DEFAULT true,
  grants_enabled          boolean NOT NULL DEFAULT true
);
INSERT INTO ledger.cluster DEFAULT VALUES;

-- state 1 active, 2 fenced, 3 reclaimed, 4 closed
CREATE TABLE ledger.holder (
  holder_id     integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  journal_id    uuid        NOT NULL UNIQUE,
  node_name     text        NOT NULL,
  epoch         bigint      NOT NULL DEFAULT 0,
  state         smallint    NOT NULL DEFAULT 1 CHECK (state IN (1, 2, 3, 4)),
  validity_s    integer     NOT NULL DEFAULT 300,
  max_request_s integer     NOT NULL DEFAULT 900,
  timeline      text,
  opened_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE ledger.holder_progress (
  holder_id   integer PRIMARY KEY REFERENCES ledger.holder,
  applied_seq bigint  NOT NULL DEFAULT 0,
  heartbeat   bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);


-- 4. Leases -------------------------------------------------------------------------------------------

CREATE TABLE ledger.lease (
  pool_id        bigint  NOT NULL REFERENCES ledger.pool,
  holder_id      integer NOT NULL REFERENCES ledger.holder,
  outstanding    bigint  NOT NULL DEFAULT 0 CHECK (outstanding >= 0),
  pending        bigint  NOT NULL DEFAULT 0,
  recall         boolean NOT NULL DEFAULT false,
  granted_total  bigint  NOT NULL DEFAULT 0,
  returned_total bigint  NOT NULL DEFAULT 0,
  spent_total    bigint  NOT NULL DEFAULT 0,
  PRIMARY KEY (pool_id, holder_id),
  CHECK (outstanding = granted_total - returned_total - spent_total)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX lease_holder ON ledger.lease (holder_id);
CREATE INDEX lease_recall ON ledger.lease (holder_id) WHERE recall;


-- 5. Batches and usage events ---------------------------------------------------------------------------

CREATE TABLE ledger.batch (
  holder_id   integer     NOT NULL,
  last_seq    bigint      NOT NULL,
  first_seq   bigint      NOT NULL,
  recorded_at timestamptz NOT NULL,
  events      integer     NOT NULL CHECK (events = last_seq - first_seq + 1),
  cost        bigint      NOT NULL,
  charge      bigint      NOT NULL,
  PRIMARY KEY (holder_id, last_seq)
);

-- One row per attempt; all attempts of a request share request_id. recorded_at is the database's
-- time of posting (a node's broken clock cannot scatter rows), occurred_at is information.
-- status 1 settled, 2 estimated, 3 cancelled, 5 failed, 6 unknown, 7 orphaned, 8 review,
-- 9 quarantined, 10 free. endpoint is surface and operation (ledger/usage.py names them).
CREATE TABLE ledger.usage_event (
  recorded_at timestamptz NOT NULL,
  occurred_at timestamptz NOT NULL,
  seq         bigint      NOT NULL,
  account_id  bigint      NOT NULL,
  key_id      bigint      NOT NULL,
  price_id    bigint      NOT NULL,
  reserved    bigint      NOT NULL,
  cost        bigint      NOT NULL CHECK (cost >= 0),
  charge      bigint      NOT NULL CHECK (charge >= 0),
  holder_id   integer     NOT NULL,
  model_id    integer     NOT NULL,
  provider_id integer     NOT NULL,
  tok_in      integer     NOT NULL,
  tok_cached  integer     NOT NULL,
  tok_out     integer     NOT NULL,
  tok_reason  integer     NOT NULL,
  ttfb_ms     integer     NOT NULL,
  duration_ms integer     NOT NULL,
  status      smallint    NOT NULL,
  endpoint    smallint    NOT NULL,
  request_id  uuid        NOT NULL,
  units       jsonb
) PARTITION BY RANGE (recorded_at);
CREATE INDEX usage_event_account ON ledger.usage_event (account_id, recorded_at);
CREATE INDEX usage_event_time ON ledger.usage_event USING brin (recorded_at)
  WITH (pages_per_range = 32, autosummarize = on);
CREATE TABLE ledger.usage_event_default PARTITION OF ledger.usage_event DEFAULT;

CREATE TABLE ledger.quarantine (
  holder_id   integer     NOT NULL,
  seq         bigint      NOT NULL,
  payload     jsonb       NOT NULL,
  error       text        NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  resolved_by text,
  PRIMARY KEY (holder_id, seq)
);


-- 6. The journal of transfers -----------------------------------------------------------------------------

CREATE TABLE ledger.transfer (
  transfer_id       bigint      GENERATED BY DEFAULT AS IDENTITY,
  created_at        timestamptz NOT NULL DEFAULT now(),
  code              smallint    NOT NULL,
  debit_account_id  bigint      NOT NULL,
  credit_account_id bigint      NOT NULL,
  amount            bigint      NOT NULL CHECK (amount > 0),
  account_id        bigint      NOT NULL DEFAULT 0,
  holder_id         integer,
  last_seq          bigint,
  reason            text,
  CHECK (debit_account_id <> credit_account_id)
) PARTITION BY RANGE (created_at);
CREATE INDEX transfer_account ON ledger.transfer (account_id, transfer_id);
CREATE INDEX transfer_time ON ledger.transfer USING brin (created_at) WITH (pages_per_range = 32);
CREATE TABLE ledger.transfer_default PARTITION OF ledger.transfer DEFAULT;

CREATE TABLE ledger.recharge_request (
  account_id   bigint      PRIMARY KEY,
  requested_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE ledger.external_ref (
  code        smallint NOT NULL,
  ref         text     NOT NULL,
  transfer_id bigint   NOT NULL,
  PRIMARY KEY (code, ref)
);


-- 7. Append-only guards --------------------------------------------------------------------------------------

CREATE FUNCTION ledger.forbid_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION USING ERRCODE = 'LE009', MESSAGE = format('%s is append-only', TG_TABLE_NAME);
END $$;

CREATE TRIGGER transfer_append_only BEFORE UPDATE OR DELETE ON ledger.transfer
  FOR EACH ROW EXECUTE FUNCTION ledger.forbid_change();
CREATE TRIGGER usage_event_append_only BEFORE UPDATE OR DELETE ON ledger.usage_event
  FOR EACH ROW EXECUTE FUNCTION ledger.forbid_change();
CREATE TRIGGER batch_append_only BEFORE UPDATE OR DELETE ON ledger.batch
  FOR EACH ROW EXECUTE FUNCTION ledger.forbid_change();


-- 8. Partitions ------------------------------------------------------------------------------------------------

-- Daily for usage, monthly for transfers, in UTC, up to p_days ahead. Called at start and daily.
-- A range whose rows already fell into the DEFAULT partition cannot be cut out any more: they stay
-- there, correct and a little slower. Returns how many partitions were made.
CREATE FUNCTION ledger.create_partitions(p_days integer DEFAULT 7) RETURNS integer
LANGUAGE plpgsql SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
DECLARE
  v_today timestamptz := date_trunc('day', now());
  v_last  timestamptz := v_today + p_days * interval '1 day';
  v_made  integer := 0;
  v_name  text;
  r       record;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('ledger.create_partitions'));
  FOR r IN
    SELECT 'usage_event' AS parent, day AS lower, day + interval '1 day' AS upper, 'YYYYMMDD' AS suffix
      FROM generate_series(v_today, v_last, interval '1 day') AS day
    UNION ALL
    SELECT 'transfer', month, month + interval '1 month', 'YYYYMM'
      FROM generate_series(date_trunc('month', v_today), v_last, interval '1 month') AS month
  LOOP
    v_name := r.parent || '_' || to_char(r.lower, r.suffix);
    CONTINUE WHEN to_regclass('ledger.' || v_name) IS NOT NULL;
    BEGIN
      EXECUTE format('CREATE TABLE ledger.%I PARTITION OF ledger.%I FOR VALUES FROM (%L) TO (%L)',
                     v_name, r.parent, r.lower, r.upper);
      v_made := v_made + 1;
    EXCEPTION WHEN check_violation THEN
      RAISE WARNING 'rows of % from % on stay in the DEFAULT partition', r.parent, r.lower;
    END;
  END LOOP;
  RETURN v_made;
END $$;

SELECT ledger.create_partitions();


-- 9. Sessions ----------------------------------------------------------------------------------------------------

CREATE FUNCTION ledger.register_holder(p_journal uuid, p_node text) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE v_holder integer;
BEGIN
  UPDATE ledger.holder SET node_name = p_node WHERE journal_id = p_journal
    RETURNING holder_id INTO v_holder;
  IF NOT FOUND THEN
    INSERT INTO ledger.holder (journal_id, node_name) VALUES (p_journal, p_node)
      ON CONFLICT (journal_id) DO UPDATE SET node_name = excluded.node_name
      RETURNING holder_id INTO v_holder;
  END IF;
  INSERT INTO ledger.holder_progress (holder_id) VALUES (v_holder) ON CONFLICT DO NOTHING;
  RETURN v_holder;
END $$;

-- Takes the holder row exclusively, so it waits for a still-running statement of the old session;
-- whatever carries the old epoch is refused afterwards. A new database timeline without
-- synchronous replication stops grants until every holder has attested its leases again.
CREATE FUNCTION ledger.open_session(p_holder integer, p_journal uuid,
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
     SET epoch = h.epoch + 1, state = CASE WHEN h.state = 3 THEN 3 ELSE 1 END, opened_at = now()
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


-- 10. The two lanes -----------------------------------------------------------------------------------------------

-- The grant policy, in one place: a rich pool gives what is wanted, a poor one at most a quarter
-- of what is left, or exactly the smallest waiting reservation.
CREATE FUNCTION ledger.grant_amount(p_cap bigint, p_need bigint, p_want bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN p_want <= 0 OR p_cap <= 0 OR p_cap < p_need THEN 0
              ELSE least(p_cap, greatest(p_need, least(p_want, p_cap / 4))) END
$$;

-- Microseconds since the epoch. A node's clock may say anything, but no reader shall have to cope
-- with the year 200,000: it is bounded to 1970 … 9998.
CREATE FUNCTION ledger.moment(p_us bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
  SELECT timestamptz 'epoch' + least(greatest(p_us, 0), 253370764800000000) * interval '1 microsecond'
$$;

-- Posts the next contiguous run of events and, for each pool of the sync section, sets the lease to
-- what the holder still holds plus what it is granted now. Arrays e_* have one entry per event,
-- x_* one per touched pool. `covered` comes out of the lease; `short` does not: it is collected
-- from the pool's available credit, and the operator bears the rest (code 40).
CREATE FUNCTION ledger.exchange(
  p_holder integer, p_epoch bigint, p_first_seq bigint, p_last_seq bigint,
  e_occurred_us bigint[], e_account bigint[], e_key bigint[], e_model integer[], e_provider integer[],
  e_price bigint[], e_status smallint[], e_endpoint smallint[],
  e_tok_in integer[], e_tok_cached integer[], e_tok_out integer[], e_tok_reason integer[],
  e_reserved bigint[], e_cost bigint[], e_charge bigint[], e_ttfb integer[], e_duration integer[],
  e_request uuid[], e_units jsonb[],
  x_pool bigint[], x_covered bigint[], x_short bigint[],
  x_sync boolean[], x_held bigint[], x_pending bigint[], x_need bigint[], x_want bigint[])
RETURNS TABLE (pool_id bigint, granted bigint, outstanding bigint, spent_total bigint,
               available bigint, balance bigint, status smallint, recall boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_epoch   bigint;
  v_state   smallint;
  v_applied bigint;
  v_now     timestamptz := clock_timestamp();
  v_cost    bigint;
  v_charge  bigint;
  v_found   integer;
  v_posting boolean := p_last_seq >= p_first_seq;
  v_enabled boolean := (SELECT c.grants_enabled FROM ledger.cluster c);
BEGIN
  SELECT h.epoch, h.state INTO v_epoch, v_state
    FROM ledger.holder h WHERE h.holder_id = p_holder FOR SHARE;
  IF v_epoch IS DISTINCT FROM p_epoch OR v_state NOT IN (1, 3) THEN
    RAISE EXCEPTION USING ERRCODE = 'LE001', MESSAGE = 'stale epoch';
  END IF;
  SELECT p.applied_seq INTO v_applied
    FROM ledger.holder_progress p WHERE p.holder_id = p_holder FOR UPDATE;

  IF v_posting THEN
    IF p_first_seq <> v_applied + 1 THEN
      RAISE EXCEPTION USING ERRCODE = 'LE002',
        MESSAGE = format('expected seq %s, got %s', v_applied + 1, p_first_seq);
    END IF;
    IF cardinality(e_charge) <> p_last_seq - p_first_seq + 1 THEN
      RAISE EXCEPTION USING ERRCODE = 'LE003', MESSAGE = 'batch length';
    END IF;
    -- Said here, because a check violation (23514) tells the holder that the two sides disagree.
    IF EXISTS (SELECT FROM unnest(e_cost, e_charge) AS u(c, g) WHERE u.c < 0 OR u.g < 0) THEN
      RAISE EXCEPTION USING ERRCODE = 'LE003', MESSAGE = 'negative amount';
    END IF;
    INSERT INTO ledger.usage_event (
           recorded_at, occurred_at, seq, account_id, key_id, price_id, reserved, cost, charge,
           holder_id, model_id, provider_id, tok_in, tok_cached, tok_out, tok_reason,
           ttfb_ms, duration_ms, status, endpoint, request_id, units)
    SELECT v_now, ledger.moment(t.us), p_first_seq + t.n - 1,
           t.acc, t.k, t.pr, t.res, t.cost, t.charge,
           p_holder, t.m, t.prov, t.ti, t.tc, t.tou, t.tr,
           t.ttfb, t.dur, t.st, t.ep, t.rq, t.un
      FROM unnest(e_occurred_us, e_account, e_key, e_price, e_reserved, e_cost, e_charge, e_model,
                  e_provider, e_tok_in, e_tok_cached, e_tok_out, e_tok_reason, e_ttfb, e_duration,
                  e_status, e_endpoint, e_request, e_units) WITH ORDINALITY
           AS t(us, acc, k, pr, res, cost, charge, m, prov, ti, tc, tou, tr, ttfb, dur, st, ep, rq, un, n);
    SELECT sum(c), sum(g) INTO v_cost, v_charge FROM unnest(e_cost, e_charge) AS u(c, g);
    INSERT INTO ledger.batch (holder_id, last_seq, first_seq, recorded_at, events, cost, charge)
      VALUES (p_holder, p_last_seq, p_first_seq, v_now, cardinality(e_charge), v_cost, v_charge);
  END IF;

  PERFORM 1 FROM ledger.pool p WHERE p.pool_id = ANY (x_pool) ORDER BY p.pool_id FOR NO KEY UPDATE;
  GET DIAGNOSTICS v_found = ROW_COUNT;
  IF v_found <> cardinality(x_pool) THEN
    RAISE EXCEPTION USING ERRCODE = 'LE004', MESSAGE = 'unknown or duplicate pool';
  END IF;
  -- An account's events and its pool must say the same, or the books would no longer balance.
  IF EXISTS (
    SELECT FROM (SELECT e.acc, sum(e.charge) AS charge
                   FROM unnest(e_account, e_charge) AS e(acc, charge) GROUP BY e.acc) e
      FULL JOIN (SELECT u.pool_id, u.covered + u.short AS taken
                   FROM unnest(x_pool, x_covered, x_short) AS u(pool_id, covered, short)
                   JOIN ledger.pool p ON p.pool_id = u.pool_id AND p.kind = 1) x ON x.pool_id = e.acc
     WHERE coalesce(e.charge, 0) <> coalesce(x.taken, 0)
  ) THEN
    RAISE EXCEPTION USING ERRCODE = 'LE003', MESSAGE = 'charges and pools differ';
  END IF;
  INSERT INTO ledger.lease (pool_id, holder_id)
    SELECT u, p_holder FROM unnest(x_pool) AS u
     WHERE NOT EXISTS (SELECT 1 FROM ledger.lease l WHERE l.pool_id = u AND l.holder_id = p_holder);
  -- Only a grant adds to a lease; who claims more than is left of it must attest it (reattest).
  IF EXISTS (
    SELECT FROM unnest(x_pool, x_covered, x_sync, x_held) AS u(pool_id, covered, sync, held)
      JOIN ledger.lease l ON l.pool_id = u.pool_id AND l.holder_id = p_holder
     WHERE u.sync AND (u.held < 0 OR u.held > l.outstanding - u.covered)
  ) THEN
    RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = 'more is held than was leased';
  END IF;

  RETURN QUERY
  WITH asked AS (
    SELECT u.*, p.kind, p.gl_account_id, p.account_id, p.available, p.credit_limit, p.status,
           l.outstanding - u.covered AS left_over,
           v_state = 1 AND v_enabled AND p.status = 1
             AND (p.valid_until IS NULL OR p.valid_until > v_now) AS leasable
      FROM unnest(x_pool, x_covered, x_short, x_sync, x_held, x_pending, x_need, x_want)
             AS u(pool_id, covered, short, sync, held, pending, need, want)
      JOIN ledger.pool p ON p.pool_id = u.pool_id
      JOIN ledger.lease l ON l.pool_id = u.pool_id AND l.holder_id = p_holder
  ), returned AS (
    SELECT a.*, CASE WHEN a.sync THEN a.left_over - a.held ELSE 0 END AS ret FROM asked a
  ), collecting AS (
    -- A budget is a limit, not money: an overrun is simply recorded on it.
    SELECT r.*, CASE WHEN r.kind = 1 THEN least(r.short, greatest(r.available + r.ret + r.credit_limit, 0))
                     ELSE r.short END AS collected FROM returned r
  ), decided AS (
    SELECT c.*, CASE WHEN c.sync AND c.leasable
                     THEN ledger.grant_amount(c.available + c.ret - c.collected + c.credit_limit, c.need, c.want)
                     ELSE 0 END AS gr FROM collecting c
  ), pools AS (
    UPDATE ledger.pool p SET
      available = p.available + d.ret - d.collected - d.gr,
      leased    = p.leased - d.covered - d.ret + d.gr,
      spent     = p.spent + d.covered + d.short,
      funded    = p.funded + d.short - d.collected
    FROM decided d
    WHERE p.pool_id = d.pool_id AND (d.covered <> 0 OR d.short <> 0 OR d.ret <> 0 OR d.gr <> 0)
    RETURNING p.pool_id, p.kind, p.account_id, p.available, p.leased, p.recharge_below
  ), recharges AS (
    INSERT INTO ledger.recharge_request (account_id)
    SELECT p.account_id FROM pools p WHERE p.kind = 1 AND p.available + p.leased < p.recharge_below
    ON CONFLICT DO NOTHING
  ), leases AS (
    UPDATE ledger.lease l SET
      outstanding    = d.left_over - d.ret + d.gr,
      pending        = CASE WHEN d.sync THEN d.pending ELSE l.pending END,
      recall         = l.recall AND NOT d.sync,
      granted_total  = l.granted_total + d.gr,
      returned_total = l.returned_total + d.ret,
      spent_total    = l.spent_total + d.covered
    FROM decided d WHERE l.pool_id = d.pool_id AND l.holder_id = p_holder
    RETURNING l.pool_id, l.outstanding, l.spent_total, l.recall
  ), absorbed AS (
    INSERT INTO ledger.transfer (code, debit_account_id, credit_account_id, amount, account_id, holder_id, last_seq)
    SELECT 40, 11, d.gl_account_id, d.short - d.collected, d.account_id, p_holder, p_last_seq
      FROM decided d WHERE d.short > d.collected
  )
  -- The pool rows as this statement sees them are the old ones; the new figures follow from them.
  SELECT d.pool_id, d.gr, l.outstanding, l.spent_total,
         d.available + d.ret - d.collected - d.gr + d.credit_limit,
         p.funded - p.spent - d.covered - d.collected,
         d.status, l.recall
    FROM decided d
    JOIN leases l ON l.pool_id = d.pool_id
    JOIN ledger.pool p ON p.pool_id = d.pool_id
   ORDER BY d.pool_id;
  RETURN QUERY
  SELECT l.pool_id, 0::bigint, l.outstanding, l.spent_total,
         p.available + p.credit_limit, p.funded - p.spent, p.status, true
    FROM ledger.lease l JOIN ledger.pool p ON p.pool_id = l.pool_id
   WHERE l.holder_id = p_holder AND l.recall AND l.pool_id <> ALL (x_pool)
   ORDER BY l.pool_id;

  IF v_posting THEN
    INSERT INTO ledger.transfer (code, debit_account_id, credit_account_id, amount, account_id, holder_id, last_seq)
    SELECT v.code, v.debit, v.credit, v.amount, a.acc, p_holder, p_last_seq
      FROM (SELECT t.acc, t.prov::bigint AS prov,
                   sum(least(t.cost, t.charge)) AS billed,
                   sum(greatest(t.charge - t.cost, 0)) AS margin,
                   sum(greatest(t.cost - t.charge, 0)) AS unbilled
              FROM unnest(e_account, e_provider, e_cost, e_charge) AS t(acc, prov, cost, charge)
             GROUP BY 1, 2) a
      LEFT JOIN ledger.pool p ON p.pool_id = a.acc
      LEFT JOIN ledger.gl_account py ON py.kind = 2 AND py.owner_id = a.prov
      CROSS JOIN LATERAL (VALUES
        (30::smallint, p.gl_account_id, py.gl_account_id, a.billed),
        (31::smallint, p.gl_account_id, 3, a.margin),
        (32::smallint, 10, py.gl_account_id, a.unbilled)) AS v(code, debit, credit, amount)
     WHERE v.amount > 0;
  END IF;

  UPDATE ledger.holder_progress p
     SET applied_seq = greatest(p.applied_seq, p_last_seq), heartbeat = p.heartbeat + 1
   WHERE p.holder_id = p_holder;
END $$;

-- More credit for pools with waiting requests; it only ever adds. A pool that cannot serve the
-- smallest of them recalls what other holders do not use.
CREATE FUNCTION ledger.grant_lease(p_holder integer, p_epoch bigint,
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
      GET DIAGNOSTICS recalled = ROW_COUNT;
      IF recalled > 0 THEN PERFORM pg_notify('ledger_recall', r.pool_id::text); END IF;
    END IF;
    SELECT l.outstanding, l.spent_total, l.recall INTO outstanding, spent_total, recall
      FROM ledger.lease l WHERE l.pool_id = r.pool_id AND l.holder_id = p_holder;
    outstanding := coalesce(outstanding, 0);
    spent_total := coalesce(spent_total, 0);
    recall := coalesce(recall, false);
    RETURN NEXT;
  END LOOP;
END $$;

-- An event that the books refuse: its place in the sequence is taken by a row without amounts, and
-- what it said waits for an operator.
CREATE FUNCTION ledger.quarantine_event(p_holder integer, p_epoch bigint, p_seq bigint,
  p_occurred_us bigint, p_account bigint, p_key bigint, p_request uuid, p_payload jsonb, p_error text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_epoch   bigint;
  v_state   smallint;
  v_applied bigint;
  v_now     timestamptz := clock_timestamp();
BEGIN
  SELECT h.epoch, h.state INTO v_epoch, v_state
    FROM ledger.holder h WHERE h.holder_id = p_holder FOR SHARE;
  IF v_epoch IS DISTINCT FROM p_epoch OR v_state NOT IN (1, 3) THEN
    RAISE EXCEPTION USING ERRCODE = 'LE001', MESSAGE = 'stale epoch';
  END IF;
  SELECT p.applied_seq INTO v_applied
    FROM ledger.holder_progress p WHERE p.holder_id = p_holder FOR UPDATE;
  IF p_seq <> v_applied + 1 THEN
    RAISE EXCEPTION USING ERRCODE = 'LE002',
      MESSAGE = format('expected seq %s, got %s', v_applied + 1, p_seq);
  END IF;
  INSERT INTO ledger.quarantine (holder_id, seq, payload, error)
    VALUES (p_holder, p_seq, p_payload, p_error);
  INSERT INTO ledger.usage_event (
         recorded_at, occurred_at, seq, account_id, key_id, price_id, reserved, cost, charge,
         holder_id, model_id, provider_id, tok_in, tok_cached, tok_out, tok_reason,
         ttfb_ms, duration_ms, status, endpoint, request_id)
  VALUES (v_now, ledger.moment(p_occurred_us), p_seq, p_account, p_key, 0, 0, 0, 0,
          p_holder, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, p_request);
  INSERT INTO ledger.batch (holder_id, last_seq, first_seq, recorded_at, events, cost, charge)
    VALUES (p_holder, p_seq, p_seq, v_now, 1, 0, 0);
  UPDATE ledger.holder_progress SET applied_seq = p_seq, heartbeat = heartbeat + 1
   WHERE holder_id = p_holder;
END $$;


-- 11. Dead holders and lossy failovers ------------------------------------------------------------------------------

-- A compare-and-set on the heartbeat: succeeds only if truly nothing arrived since it was seen.
CREATE FUNCTION ledger.fence_holder(p_holder integer, p_heartbeat_seen bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM ledger.holder h WHERE h.holder_id = p_holder AND h.state = 1 FOR UPDATE;
  IF NOT FOUND THEN RETURN false; END IF;
  PERFORM 1 FROM ledger.holder_progress p
    WHERE p.holder_id = p_holder AND p.heartbeat = p_heartbeat_seen FOR UPDATE;
  IF NOT FOUND THEN RETURN false; END IF;
  UPDATE ledger.holder h SET state = 2, epoch = h.epoch + 1 WHERE h.holder_id = p_holder;
  RETURN true;
END $$;

-- Puts a fenced holder's credit back into its pools; NULL where it came back meanwhile.
CREATE FUNCTION ledger.reclaim_holder(p_holder integer, p_epoch_seen bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE v_total bigint;
BEGIN
  PERFORM 1 FROM ledger.holder h
    WHERE h.holder_id = p_holder AND h.state = 2 AND h.epoch = p_epoch_seen FOR UPDATE;
  IF NOT FOUND THEN RETURN NULL; END IF;
  PERFORM 1 FROM ledger.pool p
    WHERE p.pool_id IN (SELECT l.pool_id FROM ledger.lease l
                         WHERE l.holder_id = p_holder AND l.outstanding > 0)
    ORDER BY p.pool_id FOR NO KEY UPDATE;
  WITH held AS (
    SELECT l.pool_id, l.outstanding AS amount
      FROM ledger.lease l WHERE l.holder_id = p_holder AND l.outstanding > 0
  ), leases AS (
    UPDATE ledger.lease l
       SET returned_total = l.returned_total + h.amount, outstanding = 0, pending = 0
      FROM held h WHERE l.pool_id = h.pool_id AND l.holder_id = p_holder
    RETURNING h.pool_id, h.amount
  ), pools AS (
    UPDATE ledger.pool p SET available = p.available + l.amount, leased = p.leased - l.amount
      FROM leases l WHERE p.pool_id = l.pool_id
    RETURNING l.amount
  )
  SELECT coalesce(sum(amount), 0) INTO v_total FROM pools;
  UPDATE ledger.holder SET state = 3 WHERE holder_id = p_holder;
  RETURN v_total;
END $$;

-- After a failover that lost grants: the lease becomes what the holder really holds.
CREATE FUNCTION ledger.reattest(p_holder integer, p_epoch bigint, l_pool bigint[], l_held bigint[])
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_total bigint;
BEGIN
  PERFORM 1 FROM ledger.holder h
    WHERE h.holder_id = p_holder AND h.epoch = p_epoch AND h.state = 1 FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION USING ERRCODE = 'LE001', MESSAGE = 'stale epoch';
  END IF;
  PERFORM 1 FROM ledger.pool p WHERE p.pool_id = ANY (l_pool) ORDER BY p.pool_id FOR NO KEY UPDATE;
  INSERT INTO ledger.lease (pool_id, holder_id)
    SELECT u, p_holder FROM unnest(l_pool) AS u
     WHERE NOT EXISTS (SELECT 1 FROM ledger.lease l WHERE l.pool_id = u AND l.holder_id = p_holder);
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
    UPDATE ledger.pool p SET available = p.available - l.amount, leased = p.leased + l.amount
      FROM leases l WHERE p.pool_id = l.pool_id
    RETURNING l.amount
  )
  SELECT coalesce(sum(amount), 0) INTO v_total FROM pools;
  UPDATE ledger.holder h SET timeline = (SELECT c.timeline FROM ledger.cluster c)
   WHERE h.holder_id = p_holder;
  RETURN v_total;
END $$;

CREATE FUNCTION ledger.end_learning() RETURNS boolean LANGUAGE sql AS $$
  UPDATE ledger.cluster c SET grants_enabled = true
   WHERE NOT c.grants_enabled
     AND NOT EXISTS (SELECT 1 FROM ledger.holder h
                      WHERE h.state = 1 AND h.timeline IS DISTINCT FROM c.timeline)
  RETURNING true
$$;


-- 12. Money in and out ---------------------------------------------------------------------------------------------------

-- Both return false where (code, ref) was posted before. p_contra is the other side's gl_account.
CREATE FUNCTION ledger.credit_pool(p_pool bigint, p_amount bigint, p_code smallint, p_contra bigint,
                                   p_ref text, p_reason text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE v_gl bigint; v_account bigint; v_transfer bigint;
BEGIN
  INSERT INTO ledger.external_ref (code, ref, transfer_id) VALUES (p_code, p_ref, 0)
    ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN RETURN false; END IF;
  UPDATE ledger.pool SET funded = funded + p_amount, available = available + p_amount
   WHERE pool_id = p_pool AND kind = 1 RETURNING gl_account_id, account_id INTO v_gl, v_account;
  IF NOT FOUND THEN
    RAISE EXCEPTION USING ERRCODE = 'LE004', MESSAGE = 'unknown pool';
  END IF;
  INSERT INTO ledger.transfer (code, debit_account_id, credit_account_id, amount, account_id, reason)
    VALUES (p_code, p_contra, v_gl, p_amount, v_account, p_reason)
    RETURNING transfer_id INTO v_transfer;
  UPDATE ledger.external_ref SET transfer_id = v_transfer WHERE code = p_code AND ref = p_ref;
  RETURN true;
END $$;

CREATE FUNCTION ledger.debit_pool(p_pool bigint, p_amount bigint, p_code smallint, p_contra bigint,
                                  p_ref text, p_forced boolean, p_reason text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE v_gl bigint; v_account bigint; v_transfer bigint;
BEGIN
  INSERT INTO ledger.external_ref (code, ref, transfer_id) VALUES (p_code, p_ref, 0)
    ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN RETURN false; END IF;
  UPDATE ledger.pool SET funded = funded - p_amount, available = available - p_amount
   WHERE pool_id = p_pool AND kind = 1 AND (p_forced OR available >= p_amount)
   RETURNING gl_account_id, account_id INTO v_gl, v_account;
  IF NOT FOUND THEN
    IF NOT EXISTS (SELECT 1 FROM ledger.pool WHERE pool_id = p_pool AND kind = 1) THEN
      RAISE EXCEPTION USING ERRCODE = 'LE004', MESSAGE = 'unknown pool';
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'LE007', MESSAGE = 'insufficient available credit';
  END IF;
  INSERT INTO ledger.transfer (code, debit_account_id, credit_account_id, amount, account_id, reason)
    VALUES (p_code, v_gl, p_contra, p_amount, v_account, p_reason)
    RETURNING transfer_id INTO v_transfer;
  UPDATE ledger.external_ref SET transfer_id = v_transfer WHERE code = p_code AND ref = p_ref;
  RETURN true;
END $$;
