CREATE TABLE "stored_byte_changes" (
	"organization_id" uuid NOT NULL,
	"kind" text NOT NULL,
	"bytes" bigint NOT NULL
);
--> statement-breakpoint
CREATE TABLE "stored_bytes" (
	"organization_id" uuid NOT NULL,
	"kind" text NOT NULL,
	"bytes" bigint NOT NULL,
	CONSTRAINT "stored_bytes_organization_id_kind_pk" PRIMARY KEY("organization_id","kind")
);
--> statement-breakpoint
CREATE INDEX "api_keys_revoked" ON "api_keys" USING btree ("revoked_at") WHERE revoked_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX "responses_in_progress" ON "responses" USING btree ("id") WHERE status = 'in_progress';--> statement-breakpoint
-- The words of a gateway are on the lines after the sentence.
UPDATE events SET reason = regexp_replace(reason, '^(The gateway ended while it started \([^:]*\):|OpenClaw refused the configuration:|The gateway ended by itself \d+ times, the last time with: [^.]*\.) ', E'\\1\n')
WHERE reason ~ '^(The gateway ended while it started \([^:]*\):|OpenClaw refused the configuration:|The gateway ended by itself \d+ times, the last time with: [^.]*\.) ';--> statement-breakpoint
UPDATE instances SET error_message = regexp_replace(error_message, '^(The gateway ended while it started \([^:]*\):|OpenClaw refused the configuration:|The gateway ended by itself \d+ times, the last time with: [^.]*\.) ', E'\\1\n'),
  changed_by = '{"actor_type": "worker", "silent": true}'
WHERE error_message ~ '^(The gateway ended while it started \([^:]*\):|OpenClaw refused the configuration:|The gateway ended by itself \d+ times, the last time with: [^.]*\.) ';--> statement-breakpoint
CREATE FUNCTION stored_bytes(responses) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT (200 + coalesce(octet_length($1.sealed_object), 0) + coalesce(octet_length($1.sealed_input), 0)
    + octet_length(array_to_string($1.item_ids, '')) + octet_length(array_to_string($1.call_ids, ''))
    + octet_length(array_to_string($1.answered_call_ids, '')))::bigint
$$;--> statement-breakpoint
CREATE FUNCTION stored_bytes(instances) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT (coalesce(octet_length($1.sealed_config), 0) + coalesce(octet_length($1.sealed_instructions), 0)
    + coalesce(octet_length(nullif($1.metadata, '{}')::text), 0))::bigint
$$;--> statement-breakpoint
CREATE FUNCTION stored_bytes(channels) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT octet_length($1.sealed_config)::bigint
$$;--> statement-breakpoint
CREATE FUNCTION stored_bytes(skills) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT coalesce(octet_length($1.sealed_settings), 0)::bigint
$$;--> statement-breakpoint
CREATE FUNCTION stored_bytes(idempotency_keys) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT (200 + octet_length($1.key) + coalesce(octet_length($1.sealed_answer), 0))::bigint
$$;--> statement-breakpoint
CREATE FUNCTION stored_bytes(events) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT (500 + coalesce(octet_length($1.subject), 0) + coalesce(octet_length($1.reason), 0)
    + coalesce(octet_length($1.request_id), 0))::bigint
$$;--> statement-breakpoint
-- The argument is the kind. octet_length reads no value that is stored outside of its row.
CREATE FUNCTION count_stored_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  change bigint := 0;
  owner uuid;
BEGIN
  IF TG_OP <> 'INSERT' THEN change := change - stored_bytes(OLD); END IF;
  IF TG_OP <> 'DELETE' THEN change := change + stored_bytes(NEW); END IF;
  IF change = 0 THEN RETURN NULL; END IF;
  IF TG_TABLE_NAME IN ('channels', 'skills') THEN
    SELECT organization_id INTO owner FROM instances WHERE id = coalesce(NEW.instance_id, OLD.instance_id);
  ELSE
    owner := coalesce(NEW.organization_id, OLD.organization_id);
  END IF;
  INSERT INTO stored_byte_changes (organization_id, kind, bytes) VALUES (owner, TG_ARGV[0], change);
  RETURN NULL;
END
$$;--> statement-breakpoint
CREATE TRIGGER responses_stored_bytes AFTER INSERT OR DELETE ON responses FOR EACH ROW EXECUTE FUNCTION count_stored_bytes('responses');--> statement-breakpoint
CREATE TRIGGER responses_stored_bytes_update AFTER UPDATE ON responses FOR EACH ROW
WHEN (stored_bytes(OLD.*) <> stored_bytes(NEW.*)) EXECUTE FUNCTION count_stored_bytes('responses');--> statement-breakpoint
CREATE TRIGGER instances_stored_bytes AFTER INSERT OR DELETE ON instances FOR EACH ROW EXECUTE FUNCTION count_stored_bytes('instances');--> statement-breakpoint
CREATE TRIGGER instances_stored_bytes_update AFTER UPDATE ON instances FOR EACH ROW
WHEN (stored_bytes(OLD.*) <> stored_bytes(NEW.*)) EXECUTE FUNCTION count_stored_bytes('instances');--> statement-breakpoint
CREATE TRIGGER channels_stored_bytes AFTER INSERT OR DELETE ON channels FOR EACH ROW EXECUTE FUNCTION count_stored_bytes('instances');--> statement-breakpoint
CREATE TRIGGER channels_stored_bytes_update AFTER UPDATE ON channels FOR EACH ROW
WHEN (stored_bytes(OLD.*) <> stored_bytes(NEW.*)) EXECUTE FUNCTION count_stored_bytes('instances');--> statement-breakpoint
CREATE TRIGGER skills_stored_bytes AFTER INSERT OR DELETE ON skills FOR EACH ROW EXECUTE FUNCTION count_stored_bytes('instances');--> statement-breakpoint
CREATE TRIGGER skills_stored_bytes_update AFTER UPDATE ON skills FOR EACH ROW
WHEN (stored_bytes(OLD.*) <> stored_bytes(NEW.*)) EXECUTE FUNCTION count_stored_bytes('instances');--> statement-breakpoint
CREATE TRIGGER idempotency_keys_stored_bytes AFTER INSERT OR DELETE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION count_stored_bytes('idempotency_answers');--> statement-breakpoint
CREATE TRIGGER idempotency_keys_stored_bytes_update AFTER UPDATE ON idempotency_keys FOR EACH ROW
WHEN (stored_bytes(OLD.*) <> stored_bytes(NEW.*)) EXECUTE FUNCTION count_stored_bytes('idempotency_answers');--> statement-breakpoint
CREATE TRIGGER events_stored_bytes AFTER INSERT OR DELETE ON events FOR EACH ROW EXECUTE FUNCTION count_stored_bytes('events');--> statement-breakpoint
CREATE TRIGGER events_stored_bytes_update AFTER UPDATE ON events FOR EACH ROW
WHEN (stored_bytes(OLD.*) <> stored_bytes(NEW.*)) EXECUTE FUNCTION count_stored_bytes('events');--> statement-breakpoint
INSERT INTO stored_bytes (organization_id, kind, bytes)
SELECT organization_id, kind, sum(bytes) FROM (
  SELECT organization_id, 'responses' AS kind, stored_bytes(r.*) AS bytes FROM responses r
  UNION ALL SELECT organization_id, 'instances', stored_bytes(i.*) FROM instances i
  UNION ALL SELECT organization_id, 'instances', stored_bytes(c.*) FROM channels c JOIN instances i ON i.id = c.instance_id
  UNION ALL SELECT organization_id, 'instances', stored_bytes(s.*) FROM skills s JOIN instances i ON i.id = s.instance_id
  UNION ALL SELECT organization_id, 'idempotency_answers', stored_bytes(k.*) FROM idempotency_keys k
  UNION ALL SELECT organization_id, 'events', stored_bytes(e.*) FROM events e
) AS stored GROUP BY organization_id, kind;
