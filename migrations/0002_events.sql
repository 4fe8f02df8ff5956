CREATE TABLE "events" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY (sequence name "events_id_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 9223372036854775807 START WITH 1 CACHE 1),
	"organization_id" uuid NOT NULL,
	"instance_id" uuid,
	"type" text NOT NULL,
	"subject" text,
	"actor_type" text NOT NULL,
	"actor_id" text,
	"request_id" text,
	"from_status" text,
	"to_status" text,
	"generation" integer,
	"reason" text,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "changed_by" jsonb;--> statement-breakpoint
CREATE INDEX "events_instance" ON "events" USING btree ("instance_id","id");--> statement-breakpoint
CREATE INDEX "events_organization" ON "events" USING btree ("organization_id","id");--> statement-breakpoint
CREATE INDEX "events_created" ON "events" USING btree ("created_at");--> statement-breakpoint
CREATE FUNCTION instance_status(instances) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN $1.desired_state <> 'running' THEN $1.desired_state
    WHEN $1.ready_at IS NOT NULL THEN 'running'
    WHEN $1.observed_generation = $1.generation THEN 'error'
    ELSE 'provisioning'
  END
$$;--> statement-breakpoint
CREATE FUNCTION record_instance_event() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  by_whom jsonb := NEW.changed_by;
  was text := CASE WHEN TG_OP = 'UPDATE' THEN instance_status(OLD) END;
  is_now text := instance_status(NEW);
  has_settled boolean := TG_OP = 'UPDATE' AND NEW.observed_generation = NEW.generation
    AND (OLD.observed_generation <> OLD.generation OR OLD.observed_generation <> NEW.observed_generation);
BEGIN
  NEW.changed_by := NULL;
  INSERT INTO events (organization_id, instance_id, type, subject, actor_type, actor_id, request_id, from_status, to_status, generation, reason)
  VALUES (
    NEW.organization_id,
    NEW.id,
    coalesce(by_whom->>'type', CASE
      WHEN has_settled AND is_now = 'error' THEN 'instance.failed'
      WHEN has_settled AND is_now = 'terminated' THEN 'instance.destroyed'
      WHEN has_settled AND is_now = was AND is_now = 'running' THEN 'instance.reconciled'
      WHEN has_settled THEN 'instance.' || is_now
      WHEN TG_OP = 'UPDATE' AND OLD.ready_at IS NOT NULL AND NEW.ready_at IS NULL THEN 'instance.gateway_ended'
      WHEN TG_OP = 'UPDATE' AND NEW.error_message IS DISTINCT FROM OLD.error_message THEN 'instance.attempt_failed'
      ELSE 'instance.changed'
    END),
    by_whom->>'subject',
    coalesce(by_whom->>'actor_type', 'worker'),
    by_whom->>'actor_id',
    by_whom->>'request_id',
    was,
    is_now,
    NEW.generation,
    coalesce(by_whom->>'reason', NEW.error_message)
  );
  RETURN NEW;
END
$$;--> statement-breakpoint
CREATE TRIGGER instances_events_insert BEFORE INSERT ON instances FOR EACH ROW EXECUTE FUNCTION record_instance_event();--> statement-breakpoint
CREATE TRIGGER instances_events BEFORE UPDATE ON instances FOR EACH ROW
WHEN (NEW.changed_by IS NOT NULL
  OR OLD.desired_state IS DISTINCT FROM NEW.desired_state
  OR OLD.generation IS DISTINCT FROM NEW.generation
  OR OLD.observed_generation IS DISTINCT FROM NEW.observed_generation
  OR OLD.ready_at IS DISTINCT FROM NEW.ready_at
  OR OLD.error_message IS DISTINCT FROM NEW.error_message
  OR OLD.name IS DISTINCT FROM NEW.name
  OR OLD.metadata IS DISTINCT FROM NEW.metadata
  OR OLD.sealed_config IS DISTINCT FROM NEW.sealed_config)
EXECUTE FUNCTION record_instance_event();
