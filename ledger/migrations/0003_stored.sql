-- Content that is kept to be replayed: stored responses, sealed with a key of their project.
--
-- Each project has a random key, wrapped by the deployment's secret: neither a copy of the database
-- nor the secret alone reads anything. Deleting a project deletes its key in the same transaction,
-- which makes its content unreadable at once; the rows follow with the next purge.

CREATE SCHEMA stored;


-- 1. Project keys ---------------------------------------------------------------------------------

-- One per secret that was ever in use: under another secret a project begins anew, and what was
-- sealed before can be read again when its secret comes back. secret_id is a fingerprint.
CREATE TABLE stored.project_key (
  key_id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  project_id bigint      NOT NULL REFERENCES directory.project,
  secret_id  bytea       NOT NULL CHECK (octet_length(secret_id) = 8),
  wrapped    bytea       NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (project_id, secret_id)
);

-- The project's key under this secret, made of p_wrapped where it has none yet. No row where the
-- project was deleted: its row is locked, so that no key can appear after the deletion.
CREATE FUNCTION stored.key_of(p_project bigint, p_secret bytea, p_wrapped bytea)
RETURNS TABLE (key_id bigint, wrapped bytea)
LANGUAGE plpgsql AS $$
BEGIN
  RETURN QUERY SELECT k.key_id, k.wrapped FROM stored.project_key k
                WHERE k.project_id = p_project AND k.secret_id = p_secret;
  IF FOUND THEN RETURN; END IF;
  PERFORM 1 FROM directory.project p
    WHERE p.project_id = p_project AND p.deleted_at IS NULL FOR SHARE;
  IF NOT FOUND THEN RETURN; END IF;
  INSERT INTO stored.project_key (project_id, secret_id, wrapped)
    VALUES (p_project, p_secret, p_wrapped) ON CONFLICT DO NOTHING;
  RETURN QUERY SELECT k.key_id, k.wrapped FROM stored.project_key k
                WHERE k.project_id = p_project AND k.secret_id = p_secret;
END $$;

CREATE FUNCTION stored.forget_project() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM stored.project_key WHERE project_id = NEW.project_id;
  RETURN NULL;
END $$;
CREATE TRIGGER project_forgotten AFTER UPDATE OF deleted_at ON directory.project
  FOR EACH ROW WHEN (OLD.deleted_at IS NULL AND NEW.deleted_at IS NOT NULL)
  EXECUTE FUNCTION stored.forget_project();


-- 2. Responses --------------------------------------------------------------------------------------

-- A response holds its own items only; what came before is behind previous_id, which may be gone.
-- Ids are what clients know responses by, and unique within a project. `items` and `body` are
-- sealed; items_bytes is how much the items are once they are open.
CREATE TABLE stored.response (
  project_id  bigint      NOT NULL REFERENCES directory.project,
  response_id text        COLLATE "C" NOT NULL CHECK (octet_length(response_id) BETWEEN 1 AND 256),
  previous_id text        COLLATE "C",
  key_id      bigint      NOT NULL,
  created_at  timestamptz NOT NULL,
  expires_at  timestamptz NOT NULL,
  items_bytes bigint      NOT NULL,
  items       bytea       NOT NULL,
  body        bytea       NOT NULL,
  PRIMARY KEY (project_id, response_id)
);
CREATE INDEX response_expiry ON stored.response (expires_at);
-- Sealed bytes cannot be compressed.
ALTER TABLE stored.response ALTER items SET STORAGE EXTERNAL, ALTER body SET STORAGE EXTERNAL;

-- Which response holds an item: for references to single items.
CREATE TABLE stored.item (
  project_id  bigint NOT NULL,
  item_id     text   COLLATE "C" NOT NULL CHECK (octet_length(item_id) BETWEEN 1 AND 256),
  response_id text   COLLATE "C" NOT NULL,
  PRIMARY KEY (project_id, item_id, response_id),
  FOREIGN KEY (project_id, response_id) REFERENCES stored.response ON DELETE CASCADE
);
CREATE INDEX item_response ON stored.item (project_id, response_id);

-- Deletes up to p_rows responses that have expired by p_now or whose project was deleted. Returns
-- how many; call it again while that is p_rows. Two at once take different rows.
CREATE FUNCTION stored.purge(p_now timestamptz, p_rows integer) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE v_gone bigint; v_more bigint;
BEGIN
  DELETE FROM stored.response r USING (
    SELECT e.project_id, e.response_id FROM stored.response e
     WHERE e.expires_at <= p_now LIMIT p_rows FOR UPDATE SKIP LOCKED) AS due
   WHERE (r.project_id, r.response_id) = (due.project_id, due.response_id);
  GET DIAGNOSTICS v_gone = ROW_COUNT;
  DELETE FROM stored.response r USING (
    SELECT e.project_id, e.response_id FROM directory.project p
      JOIN stored.response e ON e.project_id = p.project_id
     WHERE p.deleted_at IS NOT NULL LIMIT p_rows - v_gone FOR UPDATE OF e SKIP LOCKED) AS due
   WHERE (r.project_id, r.response_id) = (due.project_id, due.response_id);
  GET DIAGNOSTICS v_more = ROW_COUNT;
  RETURN v_gone + v_more;
END $$;
