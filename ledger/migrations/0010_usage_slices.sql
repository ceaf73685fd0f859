-- What pages and reports ask of a million events: sums that are kept as the events come, by hour and
-- by day. And what an owner may change of a budget.
--
-- The sums follow the holders' batches, which are posted in their order without a gap: a mark for each
-- holder says up to which event it is summed up, in the transaction that adds the sums. So each event
-- is in them once, whatever dies in between. They may be thrown away, with the marks, and made again
-- as far back as events are kept.

-- 1. Sums -------------------------------------------------------------------------------------------

-- span 1: an hour, 2: a day, in UTC and of the database's time of posting. A request counts once, by
-- the event that ended it; attempts before it add their cost. Of models without a price, failures
-- are not told from attempts here, and count as those.
CREATE TABLE console.usage_slice (
  account_id bigint      NOT NULL,
  span       smallint    NOT NULL CHECK (span IN (1, 2)),
  starts_at  timestamptz NOT NULL,
  key_id     bigint      NOT NULL,
  model_id   integer     NOT NULL,
  requests   bigint      NOT NULL,
  failed     bigint      NOT NULL,
  cancelled  bigint      NOT NULL,
  attempts   bigint      NOT NULL,
  cost       bigint      NOT NULL,
  charge     bigint      NOT NULL,
  tok_in     bigint      NOT NULL,
  tok_cached bigint      NOT NULL,
  tok_out    bigint      NOT NULL,
  tok_reason bigint      NOT NULL,
  PRIMARY KEY (account_id, span, starts_at, key_id, model_id)
) WITH (fillfactor = 80);

-- How many answers began so soon: bucket n has those from 2^(n/4) - 1 ms on, so that what is read
-- from it is at most a fifth too much.
CREATE TABLE console.usage_latency (
  account_id bigint      NOT NULL,
  span       smallint    NOT NULL CHECK (span IN (1, 2)),
  starts_at  timestamptz NOT NULL,
  model_id   integer     NOT NULL,
  bucket     smallint    NOT NULL,
  requests   bigint      NOT NULL,
  PRIMARY KEY (account_id, span, starts_at, model_id, bucket)
) WITH (fillfactor = 80);

CREATE TABLE console.usage_mark (
  holder_id integer PRIMARY KEY,
  seq       bigint  NOT NULL
);

-- Sum up what was posted since, at most p_batches of each holder. Returns how many events those were;
-- 0 also where somebody else is at it.
CREATE FUNCTION console.sum_up_usage(p_batches integer) RETURNS bigint
LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE
  v_events bigint := 0;
  r record;
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtext('console.sum_up_usage')) THEN RETURN 0; END IF;
  FOR r IN
    SELECT h.holder_id, coalesce(m.seq, 0) AS seq, b.last_seq, b.events, b.first_at, b.last_at
      FROM ledger.holder_progress h
      LEFT JOIN console.usage_mark m USING (holder_id)
     CROSS JOIN LATERAL (
       SELECT max(n.last_seq) AS last_seq, sum(n.events) AS events,
              min(n.recorded_at) AS first_at, max(n.recorded_at) AS last_at
         FROM (SELECT * FROM ledger.batch b
                WHERE b.holder_id = h.holder_id AND b.last_seq > coalesce(m.seq, 0)
                ORDER BY b.last_seq LIMIT p_batches) n) b
     WHERE h.applied_seq > coalesce(m.seq, 0) AND b.last_seq IS NOT NULL
  LOOP
    WITH event AS MATERIALIZED (
      SELECT e.*, p.span, date_trunc(p.name, e.recorded_at) AS starts_at,
             e.reserved > 0 OR e.charge > 0 OR e.status IN (1, 2, 8, 10) AS ended
        FROM ledger.usage_event e CROSS JOIN (VALUES (1::smallint, 'hour'), (2, 'day')) AS p(span, name)
       WHERE e.recorded_at BETWEEN r.first_at AND r.last_at
         AND e.holder_id = r.holder_id AND e.seq > r.seq AND e.seq <= r.last_seq
    ), slices AS (
      INSERT INTO console.usage_slice AS s
      SELECT e.account_id, e.span, e.starts_at, e.key_id, e.model_id,
             count(*) FILTER (WHERE e.ended),
             count(*) FILTER (WHERE e.ended AND e.status IN (5, 6, 7, 9)),
             count(*) FILTER (WHERE e.ended AND e.status = 3),
             count(*) FILTER (WHERE NOT e.ended),
             sum(e.cost), sum(e.charge), sum(e.tok_in), sum(e.tok_cached), sum(e.tok_out),
             sum(e.tok_reason)
        FROM event e GROUP BY 1, 2, 3, 4, 5
      ON CONFLICT (account_id, span, starts_at, key_id, model_id) DO UPDATE SET
        requests = s.requests + excluded.requests, failed = s.failed + excluded.failed,
        cancelled = s.cancelled + excluded.cancelled, attempts = s.attempts + excluded.attempts,
        cost = s.cost + excluded.cost, charge = s.charge + excluded.charge,
        tok_in = s.tok_in + excluded.tok_in, tok_cached = s.tok_cached + excluded.tok_cached,
        tok_out = s.tok_out + excluded.tok_out, tok_reason = s.tok_reason + excluded.tok_reason
    ), latencies AS (
      INSERT INTO console.usage_latency AS l
      SELECT e.account_id, e.span, e.starts_at, e.model_id,
             floor(4 * log(2, e.ttfb_ms + 1))::smallint, count(*)
        FROM event e WHERE e.ttfb_ms > 0 GROUP BY 1, 2, 3, 4, 5
      ON CONFLICT (account_id, span, starts_at, model_id, bucket) DO UPDATE SET
        requests = l.requests + excluded.requests
    )
    INSERT INTO console.usage_mark (holder_id, seq) VALUES (r.holder_id, r.last_seq)
    ON CONFLICT (holder_id) DO UPDATE SET seq = excluded.seq;
    v_events := v_events + r.events;
  END LOOP;
  RETURN v_events;
END $$;


-- 2. Budgets that change ------------------------------------------------------------------------------

-- A project's or a key's budget becomes p_budget (none: NULL) for p_period; one of both ids is NULL.
-- What was spent in that period stays spent: its pool grows or shrinks by the difference, and may fall
-- below zero; what gateways hold of it is then called back. Raises LE004 where there is no such
-- project or key.
CREATE FUNCTION directory.set_budget(p_project bigint, p_key bigint, p_budget bigint, p_period text)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v_starts  timestamptz := directory.first_period(p_period);
  v_account bigint;
  v_pool    bigint;
  v_before  bigint;
BEGIN
  PERFORM 1 FROM directory.change FOR UPDATE;
  SELECT p.account_id INTO v_account
    FROM directory.project p LEFT JOIN directory.api_key k ON k.key_id = p_key
   WHERE p.project_id = coalesce(p_project, k.project_id) AND p.deleted_at IS NULL;
  IF v_account IS NULL THEN
    RAISE EXCEPTION USING ERRCODE = 'LE004', MESSAGE = 'no such project or key';
  END IF;
  IF p_budget IS NOT NULL THEN
    SELECT b.pool_id, p.funded INTO v_pool, v_before
      FROM directory.budget_pool b JOIN ledger.pool p USING (pool_id)
     WHERE (b.project_id = p_project OR b.key_id = p_key) AND b.starts_at = v_starts
       FOR NO KEY UPDATE OF p;
    IF v_pool IS NULL THEN
      v_pool := directory.open_budget(v_account, p_project, p_key, p_budget, v_starts);
    ELSIF p_budget <> v_before THEN
      UPDATE ledger.pool p SET funded = p_budget, available = p.available + p_budget - v_before
       WHERE p.pool_id = v_pool;
      UPDATE ledger.lease l SET recall = true
       WHERE l.pool_id = v_pool AND l.outstanding > 0 AND p_budget < v_before;
    END IF;
  END IF;
  IF p_key IS NULL THEN
    UPDATE directory.project p
       SET budget = p_budget, budget_period = p_period, budget_pool_id = v_pool
     WHERE p.project_id = p_project;
  ELSE
    UPDATE directory.api_key k
       SET budget = p_budget, budget_period = p_period, budget_pool_id = v_pool
     WHERE k.key_id = p_key;
  END IF;
END $$;


-- 3. Plans --------------------------------------------------------------------------------------------

-- Who asked for another tier; the operator's answer makes it so, or says why not.
CREATE TABLE console.plan_request (
  request_id bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  account_id bigint      NOT NULL REFERENCES directory.account,
  tier       text        NOT NULL,
  note       text        NOT NULL DEFAULT '',
  asked_by   bigint      NOT NULL REFERENCES console.user,
  asked_at   timestamptz NOT NULL,
  state      text        NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'granted', 'declined', 'withdrawn')),
  decided_by bigint      REFERENCES console.user,
  decided_at timestamptz,
  reply      text        NOT NULL DEFAULT '',
  CHECK ((state = 'open') = (decided_at IS NULL))
);
CREATE UNIQUE INDEX plan_request_open ON console.plan_request (account_id) WHERE state = 'open';

SELECT farebox.grant_privileges();
