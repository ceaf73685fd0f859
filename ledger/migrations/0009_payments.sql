-- Credit paid for by card: who is who at Stripe, what was paid, taken back and disputed, what Stripe
-- has told us (the inbox), and accounts that top themselves up.
--
-- The books know a payment by its PaymentIntent (transfer code 1), a refund by its own id (code 3), a
-- dispute by its own (code 7), a fee by its balance transaction (code 2): each is posted once, however
-- often and in whatever order we hear of it. Amounts are nano-dollars: a cent is 10,000,000.


-- 1. Who we are to Stripe ---------------------------------------------------------------------------

-- One Stripe account may serve several deployments. Whatever we make there carries this id; what
-- carries another, or none, is none of our business.
CREATE TABLE console.stripe (
  one_row       boolean     PRIMARY KEY DEFAULT true CHECK (one_row),
  instance      uuid        NOT NULL DEFAULT gen_random_uuid(),
  reconciled_at timestamptz NOT NULL DEFAULT 'epoch'  -- when one of us began to compare with Stripe
);
INSERT INTO console.stripe DEFAULT VALUES;

-- creation_key makes the call that creates the customer repeatable. The card is the one that was
-- saved for payments without its owner.
CREATE TABLE console.stripe_customer (
  account_id      bigint      PRIMARY KEY REFERENCES directory.account,
  creation_key    uuid        NOT NULL DEFAULT gen_random_uuid(),
  customer_id     text        COLLATE "C" UNIQUE,
  payment_method  text        COLLATE "C",
  card_brand      text        NOT NULL DEFAULT '',
  card_last4      text        NOT NULL DEFAULT '',
  card_exp_month  integer     NOT NULL DEFAULT 0,
  card_exp_year   integer     NOT NULL DEFAULT 0,
  CHECK (payment_method IS NULL OR customer_id IS NOT NULL)
);
CREATE INDEX stripe_customer_method ON console.stripe_customer (payment_method);


-- 2. Payments ------------------------------------------------------------------------------------------

-- amount is what was asked for, received what came, taken_back what of it refunds and disputes took.
-- turn counts who began to fetch the payment from Stripe: only what the last one got may be written,
-- so that nothing old is written over something newer.
CREATE TABLE console.payment (
  payment_id     uuid        PRIMARY KEY,
  account_id     bigint      NOT NULL REFERENCES directory.account,
  kind           text        NOT NULL CHECK (kind IN ('top_up', 'recharge')),
  state          text        NOT NULL DEFAULT 'open'
                             CHECK (state IN ('open', 'processing', 'succeeded', 'failed', 'canceled')),
  amount         bigint      NOT NULL CHECK (amount > 0 AND amount % 10000000 = 0),
  received       bigint      NOT NULL DEFAULT 0 CHECK (received >= 0),
  taken_back     bigint      NOT NULL DEFAULT 0 CHECK (taken_back >= 0),
  session_id     text        COLLATE "C" UNIQUE,
  payment_intent text        COLLATE "C" UNIQUE,
  receipt_url    text        NOT NULL DEFAULT '',
  invoice_url    text        NOT NULL DEFAULT '',
  failure        text        NOT NULL DEFAULT '',
  turn           bigint      NOT NULL DEFAULT 0,
  created_at     timestamptz NOT NULL,
  fetched_at     timestamptz NOT NULL DEFAULT 'epoch',
  paid_at        timestamptz,
  CHECK ((state = 'succeeded') = (paid_at IS NOT NULL))
);
CREATE INDEX payment_account ON console.payment (account_id, created_at, payment_id);
CREATE INDEX payment_unfinished ON console.payment (created_at) WHERE state IN ('open', 'processing');

-- Refunds and disputes of a payment. `posted` is what one takes from the account now: its amount, or
-- nothing once a refund has failed or a dispute was won. `postings` counts how often that changed.
CREATE TABLE console.reversal (
  reversal_id text        COLLATE "C" PRIMARY KEY,
  payment_id  uuid        NOT NULL REFERENCES console.payment,
  kind        text        NOT NULL CHECK (kind IN ('refund', 'dispute')),
  status      text        NOT NULL,
  amount      bigint      NOT NULL CHECK (amount >= 0),
  posted      bigint      NOT NULL DEFAULT 0 CHECK (posted >= 0),
  postings    integer     NOT NULL DEFAULT 0,
  created_at  timestamptz NOT NULL,
  changed_at  timestamptz NOT NULL
);
CREATE INDEX reversal_payment ON console.reversal (payment_id);

-- Movements of money at Stripe that are in the books, so that the comparison finds what is not.
CREATE TABLE console.stripe_transaction (
  transaction_id text PRIMARY KEY COLLATE "C",
  payment_id     uuid NOT NULL REFERENCES console.payment
);


-- 3. The inbox -------------------------------------------------------------------------------------------

-- What happened to which object (`subject`, its id); never what the object was, because by now it may
-- be something else. Parked ones failed too often, and wait for a person.
CREATE TABLE console.stripe_event (
  event_id    text        COLLATE "C" PRIMARY KEY,
  type        text        COLLATE "C" NOT NULL,
  subject     text        COLLATE "C" NOT NULL,
  state       text        NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'done', 'parked')),
  received_at timestamptz NOT NULL,
  due_at      timestamptz NOT NULL,
  tries       integer     NOT NULL DEFAULT 0,
  outcome     text        NOT NULL DEFAULT ''
);
CREATE INDEX stripe_event_due ON console.stripe_event (due_at) WHERE state = 'waiting';
CREATE INDEX stripe_event_subject ON console.stripe_event (subject) WHERE state = 'waiting';
CREATE INDEX stripe_event_received ON console.stripe_event (received_at);


-- 4. Accounts that top themselves up ------------------------------------------------------------------------

-- Below `threshold`, `amount` is paid with the saved card, up to `monthly_cap` in a calendar month
-- (UTC). After a failure nothing is tried before not_before; too many in a row switch it off.
CREATE TABLE console.recharge (
  account_id      bigint      PRIMARY KEY REFERENCES directory.account,
  enabled         boolean     NOT NULL,
  threshold       bigint      NOT NULL CHECK (threshold > 0),
  amount          bigint      NOT NULL CHECK (amount > 0 AND amount % 10000000 = 0),
  monthly_cap     bigint      NOT NULL CHECK (monthly_cap >= amount),
  failures        integer     NOT NULL DEFAULT 0,
  not_before      timestamptz NOT NULL DEFAULT 'epoch',
  disabled_reason text        NOT NULL DEFAULT '',
  capped_at       timestamptz NOT NULL DEFAULT 'epoch'  -- when its owner was last told of the cap
);

-- An attempt keeps everything that its call to Stripe says: said again, it has to say the same.
CREATE TABLE console.recharge_attempt (
  payment_id     uuid        PRIMARY KEY REFERENCES console.payment,
  account_id     bigint      NOT NULL REFERENCES directory.account,
  customer_id    text        COLLATE "C" NOT NULL,
  payment_method text        COLLATE "C" NOT NULL,
  state          text        NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'succeeded', 'failed')),
  tries          integer     NOT NULL DEFAULT 0,
  due_at         timestamptz NOT NULL,
  created_at     timestamptz NOT NULL
);
CREATE UNIQUE INDEX recharge_one_open ON console.recharge_attempt (account_id) WHERE state = 'open';
CREATE INDEX recharge_due ON console.recharge_attempt (due_at) WHERE state = 'open';

-- What an account's owners should be told. Whoever sends mail sets mailed_at.
CREATE TABLE console.notice (
  notice_id  bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  account_id bigint      NOT NULL REFERENCES directory.account,
  kind       text        COLLATE "C" NOT NULL,
  detail     jsonb       NOT NULL DEFAULT '{}',
  created_at timestamptz NOT NULL,
  mailed_at  timestamptz
);
CREATE INDEX notice_unsent ON console.notice (notice_id) WHERE mailed_at IS NULL;
CREATE INDEX notice_account ON console.notice (account_id, notice_id);


-- 5. The books -------------------------------------------------------------------------------------------------

-- What Stripe keeps for its service, between two accounts of ours (code 2); what it gives back is
-- negative. False where it was booked before.
CREATE FUNCTION ledger.book_stripe_fee(p_amount bigint, p_ref text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE v_transfer bigint;
BEGIN
  INSERT INTO ledger.external_ref (code, ref, transfer_id) VALUES (2, p_ref, 0)
    ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN RETURN false; END IF;
  INSERT INTO ledger.transfer (code, debit_account_id, credit_account_id, amount)
    VALUES (2, CASE WHEN p_amount > 0 THEN 6 ELSE 4 END, CASE WHEN p_amount > 0 THEN 4 ELSE 6 END,
            abs(p_amount))
    RETURNING transfer_id INTO v_transfer;
  UPDATE ledger.external_ref SET transfer_id = v_transfer WHERE code = 2 AND ref = p_ref;
  RETURN true;
END $$;

-- Below which balance the exchange asks for a recharge; 0 for never.
CREATE FUNCTION ledger.set_recharge_below(p_account bigint, p_below bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  UPDATE ledger.pool SET recharge_below = p_below WHERE pool_id = p_account AND kind = 1;
END $$;

-- Who has been asked for since the last call. One statement, committed at once: the exchange waits for
-- rows that are being taken.
CREATE FUNCTION ledger.take_recharge_requests() RETURNS SETOF bigint LANGUAGE plpgsql AS $$
BEGIN
  RETURN QUERY DELETE FROM ledger.recharge_request RETURNING account_id;
END $$;

SELECT farebox.secure_functions(), farebox.grant_console();
