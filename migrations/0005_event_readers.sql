CREATE INDEX "events_instance_type" ON "events" USING btree ("instance_id","type","id");--> statement-breakpoint
CREATE INDEX "events_organization_type" ON "events" USING btree ("organization_id","type","id");--> statement-breakpoint
CREATE INDEX "events_request" ON "events" USING btree ("organization_id","request_id","id") WHERE request_id IS NOT NULL;--> statement-breakpoint
CREATE FUNCTION hold_settled_event_id() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  -- Once in a transaction, before it takes its first id. A savepoint that is rolled back takes back the lock and the setting.
  IF current_setting('chowder.holds_settled_event_id', true) IS DISTINCT FROM 'on' THEN
    PERFORM pg_advisory_xact_lock_shared((x'c40d'::bigint << 48) | CASE WHEN is_called THEN last_value ELSE 0 END) FROM events_id_seq;
    PERFORM set_config('chowder.holds_settled_event_id', 'on', true);
  END IF;
  RETURN NULL;
END
$$;--> statement-breakpoint
CREATE TRIGGER events_writer BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION hold_settled_event_id();--> statement-breakpoint
-- The id up to which no event can be committed any more. A transaction that writes events holds a shared advisory lock,
-- whose number has the last id that was taken before: all ids of the transaction are greater. The id is read before
-- the locks: whoever had taken an id by then has the lock until after its commit, and is seen or has ended.
CREATE FUNCTION settled_event_id() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  settled bigint;
BEGIN
  SELECT CASE WHEN is_called THEN last_value ELSE 0 END INTO settled FROM events_id_seq;
  RETURN least(settled, (
    SELECT min(((classid::bigint & x'ffff'::bigint) << 32) | objid::bigint)
    FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND classid::bigint >> 16 = x'c40d'::bigint
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  ));
END
$$;
