-- What an account may have of keys and projects is counted before each new one, and a page lists the
-- newest keys: neither may take longer the more were made and ended before.

-- Newest first, and those of the last day.
CREATE INDEX api_key_made ON directory.api_key (project_id, created_at);
DROP INDEX directory.api_key_project;

-- Those that are served, as far as a key knows by itself: one that another key made ends with it.
CREATE INDEX api_key_live ON directory.api_key (project_id, coalesce(expires_at, 'infinity'))
  WHERE revoked_at IS NULL;

-- Deleted ones too, whose keys were made as well.
CREATE INDEX project_made ON directory.project (account_id, created_at);
