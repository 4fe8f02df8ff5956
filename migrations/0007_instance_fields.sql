ALTER TABLE "idempotency_keys" ADD COLUMN "status" integer;--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "external_id" text;--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "model" text;--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "sealed_instructions" text;--> statement-breakpoint
ALTER TABLE "instances" ADD COLUMN "restart_generation" integer;--> statement-breakpoint
CREATE UNIQUE INDEX "instances_external_id" ON "instances" USING btree ("organization_id","external_id") WHERE external_id IS NOT NULL AND desired_state <> 'terminated';--> statement-breakpoint
CREATE INDEX "instances_metadata" ON "instances" USING gin (metadata jsonb_path_ops) WHERE metadata <> '{}';--> statement-breakpoint
CREATE OR REPLACE TRIGGER instances_events BEFORE UPDATE ON instances FOR EACH ROW
WHEN (NEW.changed_by IS NOT NULL
  OR OLD.desired_state IS DISTINCT FROM NEW.desired_state
  OR OLD.generation IS DISTINCT FROM NEW.generation
  OR OLD.observed_generation IS DISTINCT FROM NEW.observed_generation
  OR OLD.ready_at IS DISTINCT FROM NEW.ready_at
  OR OLD.error_message IS DISTINCT FROM NEW.error_message
  OR OLD.name IS DISTINCT FROM NEW.name
  OR OLD.metadata IS DISTINCT FROM NEW.metadata
  OR OLD.external_id IS DISTINCT FROM NEW.external_id
  OR OLD.model IS DISTINCT FROM NEW.model
  OR OLD.sealed_instructions IS DISTINCT FROM NEW.sealed_instructions
  OR OLD.sealed_config IS DISTINCT FROM NEW.sealed_config)
EXECUTE FUNCTION record_instance_event();
