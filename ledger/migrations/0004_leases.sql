-- Leases of holders that fell silent, came back late, or met a failover: what 0001 left open.


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
