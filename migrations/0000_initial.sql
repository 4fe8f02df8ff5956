CREATE TABLE "api_keys" (
	"id" uuid PRIMARY KEY NOT NULL,
	"organization_id" uuid NOT NULL,
	"key_hash" "bytea" NOT NULL,
	"key_prefix" text NOT NULL,
	"name" text DEFAULT 'First key' NOT NULL,
	"permissions" text[],
	"instance_ids" uuid[],
	"session_ids" text[],
	"session_prefix" text,
	"expires_at" timestamp with time zone,
	"revoked_at" timestamp with time zone,
	"last_used_at" timestamp with time zone,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "channels" (
	"instance_id" uuid NOT NULL,
	"channel" text NOT NULL,
	"enabled" boolean NOT NULL,
	"sealed_config" text NOT NULL,
	"step" text,
	"error_message" text,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "channels_instance_id_channel_pk" PRIMARY KEY("instance_id","channel")
);
--> statement-breakpoint
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
CREATE TABLE "idempotency_keys" (
	"organization_id" uuid NOT NULL,
	"key" text NOT NULL,
	"request_hash" "bytea" NOT NULL,
	"sealed_answer" text,
	"status" integer,
	"process_id" uuid,
	"expires_at" timestamp with time zone NOT NULL,
	CONSTRAINT "idempotency_keys_organization_id_key_pk" PRIMARY KEY("organization_id","key")
);
--> statement-breakpoint
CREATE TABLE "installation" (
	"name" text PRIMARY KEY NOT NULL,
	"value" text NOT NULL
);
--> statement-breakpoint
CREATE TABLE "instance_use" (
	"instance_id" uuid PRIMARY KEY NOT NULL,
	"disk_bytes" bigint,
	"is_full" boolean DEFAULT false NOT NULL
);
--> statement-breakpoint
CREATE TABLE "instances" (
	"id" uuid PRIMARY KEY NOT NULL,
	"organization_id" uuid NOT NULL,
	"name" text NOT NULL,
	"external_id" text,
	"metadata" jsonb DEFAULT '{}'::jsonb NOT NULL,
	"model_provider" text NOT NULL,
	"sandbox_driver" text NOT NULL,
	"region" text,
	"openclaw_version" text NOT NULL,
	"isolation" text DEFAULT 'one_room' NOT NULL,
	"model" text,
	"sealed_instructions" text,
	"sealed_config" text,
	"egress" jsonb,
	"resources" jsonb DEFAULT '{}'::jsonb NOT NULL,
	"unlisted_models" text[] DEFAULT '{}' NOT NULL,
	"desired_state" text NOT NULL,
	"generation" integer DEFAULT 1 NOT NULL,
	"stopped_for" text,
	"is_suspended" boolean DEFAULT false NOT NULL,
	"restart_generation" integer,
	"observed_generation" integer DEFAULT 0 NOT NULL,
	"step" text,
	"attempts" integer DEFAULT 0 NOT NULL,
	"next_attempt_at" timestamp with time zone DEFAULT now() NOT NULL,
	"lease_token" bigint DEFAULT 0 NOT NULL,
	"lease_until" timestamp with time zone DEFAULT now() NOT NULL,
	"sandbox_id" text,
	"endpoint" jsonb,
	"sealed_token" text NOT NULL,
	"sealed_relay_token" text,
	"relay_token_hash" "bytea",
	"ready_at" timestamp with time zone,
	"limits" jsonb,
	"busy" jsonb,
	"error_message" text,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	"terminated_at" timestamp with time zone,
	"changed_by" jsonb,
	CONSTRAINT "instances_generations" CHECK (observed_generation BETWEEN 0 AND generation),
	CONSTRAINT "instances_attempts_count" CHECK (attempts >= 0),
	CONSTRAINT "instances_terminated" CHECK ((desired_state = 'terminated') = (terminated_at IS NOT NULL))
);
--> statement-breakpoint
CREATE TABLE "organizations" (
	"id" uuid PRIMARY KEY NOT NULL,
	"name" text NOT NULL,
	"subscription_tier" text NOT NULL,
	"instance_limit" integer,
	"instance_count" integer DEFAULT 0 NOT NULL,
	"stripe_customer_id" text,
	"stripe_subscription_id" text,
	"billed_count" integer,
	"billing_attempts" integer DEFAULT 0 NOT NULL,
	"next_billing_at" timestamp with time zone DEFAULT now() NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	"egress" jsonb,
	"resources" jsonb DEFAULT '{}'::jsonb NOT NULL,
	"max_resources" jsonb DEFAULT '{}'::jsonb NOT NULL,
	"isolation" text DEFAULT 'one_room' NOT NULL,
	"suspended_at" timestamp with time zone,
	"deleted_at" timestamp with time zone,
	"erased_at" timestamp with time zone
);
--> statement-breakpoint
CREATE TABLE "processes" (
	"id" uuid PRIMARY KEY NOT NULL,
	"role" text DEFAULT '' NOT NULL,
	"version" text DEFAULT '' NOT NULL,
	"commit" text DEFAULT '' NOT NULL,
	"host" text DEFAULT '' NOT NULL,
	"pid" integer DEFAULT 0 NOT NULL,
	"since" timestamp with time zone DEFAULT now() NOT NULL,
	"seen_at" timestamp with time zone DEFAULT now() NOT NULL,
	"regions" text[] DEFAULT '{}' NOT NULL
);
--> statement-breakpoint
CREATE TABLE "provider_keys" (
	"organization_id" uuid NOT NULL,
	"provider" text NOT NULL,
	"sealed_key" text NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	"refused_at" timestamp with time zone,
	CONSTRAINT "provider_keys_organization_id_provider_pk" PRIMARY KEY("organization_id","provider")
);
--> statement-breakpoint
CREATE TABLE "skills" (
	"instance_id" uuid NOT NULL,
	"name" text NOT NULL,
	"slug" text,
	"version" text,
	"digest" text,
	"sealed_settings" text,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "skills_instance_id_name_pk" PRIMARY KEY("instance_id","name")
);
--> statement-breakpoint
CREATE TABLE "stripe_events" (
	"id" text PRIMARY KEY NOT NULL,
	"received_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "passing_sessions" (
	"session_key" text PRIMARY KEY NOT NULL,
	"organization_id" uuid NOT NULL,
	"instance_id" uuid NOT NULL,
	"due_at" timestamp with time zone NOT NULL
);
--> statement-breakpoint
CREATE TABLE "responses" (
	"id" uuid PRIMARY KEY NOT NULL,
	"organization_id" uuid NOT NULL,
	"instance_id" uuid NOT NULL,
	"session_key" text NOT NULL,
	"status" text NOT NULL,
	"item_ids" text[] DEFAULT '{}' NOT NULL,
	"call_ids" text[] DEFAULT '{}' NOT NULL,
	"answered_call_ids" text[] DEFAULT '{}' NOT NULL,
	"sealed_object" text,
	"sealed_input" text,
	"process_id" uuid,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "turn_lines" (
	"instance_id" uuid NOT NULL,
	"session_key" text NOT NULL,
	"turns" text[] NOT NULL,
	"entered_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "turn_lines_instance_id_session_key_pk" PRIMARY KEY("instance_id","session_key")
);
--> statement-breakpoint
CREATE TABLE "model_calls" (
	"id" uuid PRIMARY KEY NOT NULL,
	"organization_id" uuid NOT NULL,
	"instance_id" uuid NOT NULL,
	"session" text,
	"cause" text,
	"provider" text NOT NULL,
	"model" text,
	"began_at" timestamp with time zone NOT NULL,
	"end_user" text,
	"outcome" text NOT NULL,
	"input_tokens" integer,
	"cache_read_tokens" integer,
	"cache_write_tokens" integer,
	"output_tokens" integer,
	"reasoning_tokens" integer,
	"cost" numeric(18, 9),
	"estimated_tokens" integer,
	"estimated_cost" numeric(18, 9)
);
--> statement-breakpoint
CREATE TABLE "open_model_calls" (
	"id" uuid PRIMARY KEY NOT NULL,
	"organization_id" uuid NOT NULL,
	"instance_id" uuid NOT NULL,
	"session" text,
	"cause" text,
	"provider" text NOT NULL,
	"model" text,
	"began_at" timestamp with time zone NOT NULL,
	"process_id" uuid NOT NULL
);
--> statement-breakpoint
CREATE TABLE "session_end_users" (
	"organization_id" uuid NOT NULL,
	"instance_id" uuid NOT NULL,
	"session" text NOT NULL,
	"end_user" text NOT NULL,
	"noted_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "session_end_users_instance_id_session_pk" PRIMARY KEY("instance_id","session")
);
--> statement-breakpoint
CREATE TABLE "budget_periods" (
	"budget_id" uuid NOT NULL,
	"member" text DEFAULT '' NOT NULL,
	"begins_at" timestamp with time zone NOT NULL,
	"ends_at" timestamp with time zone NOT NULL,
	"used" bigint DEFAULT 0 NOT NULL,
	"noted_percent" integer DEFAULT 0 NOT NULL,
	CONSTRAINT "budget_periods_budget_id_member_begins_at_pk" PRIMARY KEY("budget_id","member","begins_at")
);
--> statement-breakpoint
CREATE TABLE "budgets" (
	"id" uuid PRIMARY KEY NOT NULL,
	"organization_id" uuid NOT NULL,
	"owner_id" uuid NOT NULL,
	"scope" text NOT NULL,
	"name" text NOT NULL,
	"unit" text NOT NULL,
	"limit_units" bigint NOT NULL,
	"period" text NOT NULL,
	"time_zone" text NOT NULL,
	"mode" text NOT NULL,
	"unpriced_price" numeric,
	"position" integer NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "budgets_owner_name" UNIQUE("owner_id","name")
);
--> statement-breakpoint
CREATE TABLE "egress_hosts" (
	"instance_id" uuid NOT NULL,
	"host" text NOT NULL,
	"port" integer NOT NULL,
	"organization_id" uuid NOT NULL,
	"verdict" text NOT NULL,
	"reason" text,
	"connections" bigint NOT NULL,
	"sent_bytes" bigint DEFAULT 0 NOT NULL,
	"received_bytes" bigint DEFAULT 0 NOT NULL,
	"first_seen_at" timestamp with time zone DEFAULT now() NOT NULL,
	"last_seen_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "egress_hosts_instance_id_host_port_pk" PRIMARY KEY("instance_id","host","port")
);
--> statement-breakpoint
ALTER TABLE "api_keys" ADD CONSTRAINT "api_keys_organization_id_organizations_id_fk" FOREIGN KEY ("organization_id") REFERENCES "public"."organizations"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "channels" ADD CONSTRAINT "channels_instance_id_instances_id_fk" FOREIGN KEY ("instance_id") REFERENCES "public"."instances"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "idempotency_keys" ADD CONSTRAINT "idempotency_keys_organization_id_organizations_id_fk" FOREIGN KEY ("organization_id") REFERENCES "public"."organizations"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "instances" ADD CONSTRAINT "instances_organization_id_organizations_id_fk" FOREIGN KEY ("organization_id") REFERENCES "public"."organizations"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "provider_keys" ADD CONSTRAINT "provider_keys_organization_id_organizations_id_fk" FOREIGN KEY ("organization_id") REFERENCES "public"."organizations"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "skills" ADD CONSTRAINT "skills_instance_id_instances_id_fk" FOREIGN KEY ("instance_id") REFERENCES "public"."instances"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE UNIQUE INDEX "api_keys_key_hash" ON "api_keys" USING btree ("key_hash");--> statement-breakpoint
CREATE INDEX "api_keys_organization" ON "api_keys" USING btree ("organization_id","created_at","id");--> statement-breakpoint
CREATE INDEX "api_keys_revoked" ON "api_keys" USING btree ("revoked_at") WHERE revoked_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX "events_instance" ON "events" USING btree ("instance_id","id");--> statement-breakpoint
CREATE INDEX "events_organization" ON "events" USING btree ("organization_id","id");--> statement-breakpoint
CREATE INDEX "events_instance_type" ON "events" USING btree ("instance_id","type","id");--> statement-breakpoint
CREATE INDEX "events_organization_type" ON "events" USING btree ("organization_id","type","id");--> statement-breakpoint
CREATE INDEX "events_request" ON "events" USING btree ("organization_id","request_id","id") WHERE request_id IS NOT NULL;--> statement-breakpoint
CREATE INDEX "events_created" ON "events" USING btree ("created_at");--> statement-breakpoint
CREATE INDEX "idempotency_keys_expiry" ON "idempotency_keys" USING btree ("expires_at");--> statement-breakpoint
CREATE INDEX "instance_use_full" ON "instance_use" USING btree ("instance_id") WHERE is_full;--> statement-breakpoint
CREATE INDEX "instances_organization" ON "instances" USING btree ("organization_id","created_at","id");--> statement-breakpoint
CREATE INDEX "instances_live" ON "instances" USING btree ("organization_id","created_at","id") WHERE desired_state <> 'terminated';--> statement-breakpoint
CREATE UNIQUE INDEX "instances_external_id" ON "instances" USING btree ("organization_id","external_id") WHERE external_id IS NOT NULL AND desired_state <> 'terminated';--> statement-breakpoint
CREATE INDEX "instances_metadata" ON "instances" USING gin (metadata jsonb_path_ops) WHERE metadata <> '{}';--> statement-breakpoint
CREATE INDEX "instances_due" ON "instances" USING btree ("next_attempt_at") WHERE observed_generation < generation;--> statement-breakpoint
CREATE INDEX "instances_claim" ON "instances" USING btree ("sandbox_driver",coalesce(region, ''),"organization_id","next_attempt_at") WHERE observed_generation < generation;--> statement-breakpoint
CREATE INDEX "instances_leased" ON "instances" USING btree ("lease_until","organization_id") WHERE observed_generation < generation;--> statement-breakpoint
CREATE UNIQUE INDEX "instances_relay_token" ON "instances" USING btree ("relay_token_hash") WHERE relay_token_hash IS NOT NULL;--> statement-breakpoint
CREATE INDEX "instances_suspended" ON "instances" USING btree ("id") WHERE is_suspended;--> statement-breakpoint
CREATE INDEX "instances_of_organization_to_erase" ON "instances" USING btree ("organization_id","terminated_at","id") WHERE terminated_at IS NOT NULL AND name <> '';--> statement-breakpoint
CREATE INDEX "instances_to_erase" ON "instances" USING btree ("terminated_at") WHERE terminated_at IS NOT NULL AND name <> '';--> statement-breakpoint
CREATE INDEX "instances_settled_running" ON "instances" USING btree ("id") WHERE desired_state = 'running' AND ready_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX "instances_shard" ON "instances" USING btree (get_byte(uuid_send("id"), 15),"id") WHERE desired_state = 'running';--> statement-breakpoint
CREATE INDEX "instances_attempts" ON "instances" USING btree ("id") WHERE attempts > 0 AND ready_at IS NOT NULL;--> statement-breakpoint
CREATE UNIQUE INDEX "organizations_stripe_customer" ON "organizations" USING btree ("stripe_customer_id");--> statement-breakpoint
CREATE INDEX "organizations_suspended" ON "organizations" USING btree ("id") WHERE suspended_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX "organizations_to_erase" ON "organizations" USING btree ("id") WHERE deleted_at IS NOT NULL AND erased_at IS NULL;--> statement-breakpoint
CREATE INDEX "passing_sessions_due" ON "passing_sessions" USING btree ("due_at");--> statement-breakpoint
CREATE INDEX "responses_session" ON "responses" USING btree ("instance_id","session_key","created_at","id");--> statement-breakpoint
CREATE INDEX "responses_instance" ON "responses" USING btree ("instance_id","created_at","id");--> statement-breakpoint
CREATE INDEX "responses_in_progress" ON "responses" USING btree ("id") WHERE status = 'in_progress';--> statement-breakpoint
CREATE INDEX "model_calls_organization" ON "model_calls" USING btree ("organization_id","began_at");--> statement-breakpoint
CREATE INDEX "model_calls_instance" ON "model_calls" USING btree ("instance_id","began_at");--> statement-breakpoint
CREATE INDEX "model_calls_began" ON "model_calls" USING btree ("began_at");--> statement-breakpoint
CREATE INDEX "session_end_users_noted" ON "session_end_users" USING btree ("noted_at");--> statement-breakpoint
CREATE INDEX "budget_periods_ended" ON "budget_periods" USING btree ("ends_at");--> statement-breakpoint
CREATE INDEX "budgets_organization" ON "budgets" USING btree ("organization_id");--> statement-breakpoint
CREATE INDEX "egress_hosts_last_seen" ON "egress_hosts" USING btree ("last_seen_at");--> statement-breakpoint
CREATE INDEX "egress_hosts_organization" ON "egress_hosts" USING btree ("organization_id");
--> statement-breakpoint
-- Written by hand: what the schema files cannot say.

ALTER TABLE instance_use SET UNLOGGED;
--> statement-breakpoint
ALTER TABLE open_model_calls SET UNLOGGED;
--> statement-breakpoint
ALTER TABLE processes SET UNLOGGED;
--> statement-breakpoint
ALTER TABLE turn_lines SET UNLOGGED;
--> statement-breakpoint

CREATE FUNCTION instance_status(instances) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN $1.desired_state <> 'running' THEN $1.desired_state
    WHEN $1.ready_at IS NOT NULL THEN 'running'
    WHEN $1.observed_generation = $1.generation THEN 'error'
    ELSE 'provisioning'
  END
$$;
--> statement-breakpoint

CREATE FUNCTION record_instance_event() RETURNS trigger LANGUAGE plpgsql AS $$
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
--> statement-breakpoint

CREATE FUNCTION hold_settled_event_id() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  -- Once in a transaction, before it takes its first id. A savepoint that is rolled back takes back the lock and the setting.
  IF current_setting('chowder.holds_settled_event_id', true) IS DISTINCT FROM 'on' THEN
    PERFORM pg_advisory_xact_lock_shared((x'c40d'::bigint << 48) | CASE WHEN is_called THEN last_value ELSE 0 END) FROM events_id_seq;
    PERFORM set_config('chowder.holds_settled_event_id', 'on', true);
  END IF;
  RETURN NULL;
END
$$;
--> statement-breakpoint

-- The id up to which no event can be committed any more. A transaction that writes events holds a shared advisory lock,
-- whose number has the last id that was taken before: all ids of the transaction are greater. The id is read before
-- the locks: a transaction that had taken an id by then holds the lock until after its commit, and is seen or has ended.
CREATE FUNCTION settled_event_id() RETURNS bigint LANGUAGE plpgsql AS $$
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
--> statement-breakpoint

-- The period that a time is in. The end is the beginning of the next one, also where clocks are changed in between.
CREATE FUNCTION budget_period(per text, zone text, at timestamptz, OUT begins_at timestamptz, OUT ends_at timestamptz) RETURNS record LANGUAGE plpgsql STABLE AS $$
BEGIN
  begins_at := date_trunc(per, at, zone);
  -- Of a midnight that clocks show twice, days begin at the second one.
  IF begins_at > at THEN begins_at := date_trunc(per, at - interval '3 hours', zone); END IF;
  ends_at := CASE WHEN per = 'hour' THEN begins_at + interval '1 hour'
    -- Where midnight is skipped, the local time of the beginning is 1:00.
    ELSE (date_trunc(per, begins_at AT TIME ZONE zone) + ('1 ' || per)::interval) AT TIME ZONE zone END;
END
$$;
--> statement-breakpoint

-- The units that a call counts in a budget: what its vendor reported, and the estimate of the rest. In billionths of a
-- US dollar a model without a price counts the price that the budget sets for such models.
CREATE FUNCTION budget_units(unit text, unpriced_price numeric, call model_calls) RETURNS numeric LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE unit
    WHEN 'calls' THEN 1
    WHEN 'tokens' THEN coalesce(call.input_tokens, 0)::numeric + coalesce(call.output_tokens, 0)
      + coalesce(call.estimated_tokens, 0)
    ELSE ceil(1e9 * (
      coalesce(call.cost, (coalesce(call.input_tokens, 0)::numeric + coalesce(call.output_tokens, 0))
        * coalesce(unpriced_price, 0) / 1e6)
      + coalesce(call.estimated_cost, coalesce(call.estimated_tokens, 0) * coalesce(unpriced_price, 0) / 1e6))) END
$$;
--> statement-breakpoint

-- Whether a person asked an instance in the hour before a time: by a turn of the API, or in a channel.
CREATE FUNCTION was_asked(instance uuid, at timestamptz) RETURNS boolean LANGUAGE sql STABLE AS $$
  SELECT EXISTS (SELECT FROM responses WHERE instance_id = instance AND created_at > at - interval '1 hour')
    OR EXISTS (
      SELECT FROM model_calls
      WHERE instance_id = instance AND began_at > at - interval '1 hour' AND cause IN ('api', 'channel'))
$$;
--> statement-breakpoint

-- Whether a budget of the organization or the instance applies to the instance. Of those of unattended calls only the
-- closest do: of the instance, else of its organization, else the default.
CREATE FUNCTION budget_applies(b budgets, organization uuid, instance uuid) RETURNS boolean LANGUAGE sql STABLE AS $$
  SELECT b.scope <> 'unattended' OR b.owner_id = instance OR NOT EXISTS (
    SELECT FROM budgets closer
    WHERE closer.scope = 'unattended'
      AND (closer.owner_id = instance OR closer.owner_id = organization AND b.owner_id <> organization))
$$;
--> statement-breakpoint

-- The hard budgets that a call of an instance must be allowed by, as HardBudget of budget-schema.ts. Without a person
-- those of end users are left out.
CREATE FUNCTION hard_budgets(organization uuid, instance uuid, person text) RETURNS SETOF jsonb LANGUAGE sql STABLE AS $$
  SELECT jsonb_build_object(
    'name', b.name, 'owner', CASE WHEN b.owner_id = organization THEN 'organization' ELSE 'instance' END,
    'scope', b.scope, 'unit', b.unit, 'limitUnits', b.limit_units, 'period', b.period, 'timeZone', b.time_zone,
    'unpricedPrice', b.unpriced_price, 'used', coalesce(p.used, 0), 'endsAt', p.ends_at)
  FROM budgets b
  LEFT JOIN budget_periods p ON p.budget_id = b.id AND p.begins_at <= now() AND p.ends_at > now()
    AND p.member = CASE b.scope WHEN 'total' THEN '' WHEN 'end_user' THEN person ELSE instance::text END
  WHERE b.owner_id IN (organization, instance, '00000000-0000-0000-0000-000000000000') AND b.mode = 'hard'
    AND (b.scope <> 'end_user' OR person IS NOT NULL) AND budget_applies(b, organization, instance)
  ORDER BY b.owner_id = instance DESC, b.position
$$;
--> statement-breakpoint

-- Whose use of a budget a call counts in; null when the budget does not count it.
CREATE FUNCTION budget_member(scope text, call model_calls) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE scope
    WHEN 'total' THEN ''
    WHEN 'end_user' THEN call.end_user
    WHEN 'unattended' THEN CASE
      WHEN call.cause = 'cron' THEN call.instance_id::text
      WHEN coalesce(call.cause, 'subagent') = 'subagent' AND NOT was_asked(call.instance_id, call.began_at)
        THEN call.instance_id::text
    END
  END
$$;
--> statement-breakpoint

-- Adds calls to the use of their budgets, or subtracts them, in the order of the budgets. Writes an event the first time
-- that a period has reached 50, 80 and 100 percent; only 100 percent where end users or agents are counted apart.
CREATE FUNCTION add_to_budgets(calls model_calls[], sign integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  counted budget_periods;
  budget budgets;
  organization uuid;
  percent integer;
BEGIN
  FOR counted IN
    INSERT INTO budget_periods AS p (budget_id, member, begins_at, ends_at, used)
    SELECT b.id, member, period.begins_at, period.ends_at, sum(sign * budget_units(b.unit, b.unpriced_price, call))
    FROM unnest(calls) AS call
    JOIN budgets b
      ON b.owner_id IN (call.organization_id, call.instance_id, '00000000-0000-0000-0000-000000000000')
      AND budget_applies(b, call.organization_id, call.instance_id)
    CROSS JOIN LATERAL budget_member(b.scope, call) AS member
    CROSS JOIN LATERAL budget_period(b.period, b.time_zone, call.began_at) AS period
    WHERE member IS NOT NULL
    GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3
    ON CONFLICT (budget_id, member, begins_at) DO UPDATE SET used = p.used + excluded.used
    RETURNING p.*
  LOOP
    SELECT * INTO budget FROM budgets WHERE id = counted.budget_id;
    SELECT max(level) INTO percent FROM unnest(ARRAY[50, 80, 100]) AS level
    WHERE counted.used::numeric * 100 >= budget.limit_units::numeric * level;
    CONTINUE WHEN counted.ends_at <= now() OR percent IS NULL OR percent <= counted.noted_percent;
    UPDATE budget_periods SET noted_percent = percent
    WHERE budget_id = counted.budget_id AND member = counted.member AND begins_at = counted.begins_at;
    -- The default has no organization of its own.
    SELECT coalesce((SELECT organization_id FROM instances WHERE budget.scope = 'unattended' AND id::text = counted.member),
      budget.organization_id) INTO organization;
    INSERT INTO events (organization_id, instance_id, type, subject, actor_type, reason)
    SELECT organization, CASE
        WHEN budget.scope = 'unattended' THEN counted.member::uuid
        WHEN budget.owner_id <> budget.organization_id THEN budget.owner_id
      END, 'budget.reached', budget.name, 'worker',
      level || ' % of ' || CASE budget.unit
        WHEN 'usd' THEN '$' || round(budget.limit_units / 1e9, 2)
        ELSE budget.limit_units || CASE budget.scope WHEN 'unattended' THEN ' unattended ' ELSE ' ' END || budget.unit
      END || ' in this ' || budget.period || CASE budget.scope WHEN 'end_user' THEN ', by the end user ' || counted.member ELSE '' END
    FROM unnest(ARRAY[50, 80, 100]) AS level
    WHERE level > counted.noted_percent AND level <= percent AND (budget.scope = 'total' OR level = 100)
    ORDER BY level;
  END LOOP;
END
$$;
--> statement-breakpoint

CREATE FUNCTION count_budget_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' THEN
    PERFORM add_to_budgets(array_agg(ROW(c.*)::model_calls), -1) FROM old_calls c;
  END IF;
  PERFORM add_to_budgets(array_agg(ROW(c.*)::model_calls), 1) FROM new_calls c;
  RETURN NULL;
END
$$;
--> statement-breakpoint

-- The default of every instance for which neither its organization nor it has a budget of unattended calls.
INSERT INTO budgets (id, organization_id, owner_id, scope, name, unit, limit_units, period, time_zone, mode, position)
VALUES ('00000000-0000-0000-0000-000000000000', '00000000-0000-0000-0000-000000000000',
  '00000000-0000-0000-0000-000000000000', 'unattended', 'unattended', 'calls', 200, 'hour', 'UTC', 'hard', 0);
--> statement-breakpoint

CREATE TRIGGER events_writer BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION hold_settled_event_id();
--> statement-breakpoint
CREATE TRIGGER instances_events BEFORE UPDATE ON instances FOR EACH ROW
  WHEN (
    NEW.changed_by IS NOT NULL
    OR OLD.desired_state IS DISTINCT FROM NEW.desired_state
    OR OLD.generation IS DISTINCT FROM NEW.generation
    OR OLD.observed_generation IS DISTINCT FROM NEW.observed_generation
    OR OLD.ready_at IS DISTINCT FROM NEW.ready_at
    OR OLD.error_message IS DISTINCT FROM NEW.error_message
  )
  EXECUTE FUNCTION record_instance_event();
--> statement-breakpoint
CREATE TRIGGER instances_events_insert BEFORE INSERT ON instances FOR EACH ROW EXECUTE FUNCTION record_instance_event();
--> statement-breakpoint
CREATE TRIGGER model_calls_budgets AFTER INSERT ON model_calls REFERENCING NEW TABLE AS new_calls FOR EACH STATEMENT EXECUTE FUNCTION count_budget_usage();
--> statement-breakpoint
CREATE TRIGGER model_calls_budgets_update AFTER UPDATE ON model_calls REFERENCING OLD TABLE AS old_calls NEW TABLE AS new_calls FOR EACH STATEMENT EXECUTE FUNCTION count_budget_usage();
