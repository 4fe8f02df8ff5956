CREATE OR REPLACE FUNCTION record_instance_event() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  by_whom jsonb := NEW.changed_by;
  was text := CASE WHEN TG_OP = 'UPDATE' THEN instance_status(OLD) END;
  is_now text := instance_status(NEW);
  has_settled boolean := TG_OP = 'UPDATE' AND NEW.observed_generation = NEW.generation
    AND (OLD.observed_generation <> OLD.generation OR OLD.observed_generation <> NEW.observed_generation);
BEGIN
  NEW.changed_by := NULL;
  -- A worker looks at an agent, and finds nothing to tell: an event of this generation would say what it did.
  IF by_whom->>'silent' = 'true' THEN RETURN NEW; END IF;
  IF has_settled AND was = 'running' AND is_now = 'running' AND by_whom->>'type' IS NULL AND NEW.generation > (
    SELECT generation FROM events WHERE instance_id = NEW.id AND generation IS NOT NULL ORDER BY id DESC LIMIT 1
  ) THEN RETURN NEW; END IF;
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
$$;
