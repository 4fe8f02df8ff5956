ALTER TABLE "instances" ADD COLUMN "region" text;--> statement-breakpoint
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
  OR OLD.sealed_config IS DISTINCT FROM NEW.sealed_config
  OR OLD.unattended_calls_per_hour IS DISTINCT FROM NEW.unattended_calls_per_hour
  OR OLD.automation_paused_at IS DISTINCT FROM NEW.automation_paused_at
  OR OLD.region IS DISTINCT FROM NEW.region)
EXECUTE FUNCTION record_instance_event();
