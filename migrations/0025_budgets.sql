CREATE UNLOGGED TABLE "budget_leases" (
	"budget_id" uuid NOT NULL,
	"process_id" uuid NOT NULL,
	"begins_at" timestamp with time zone NOT NULL,
	"units" bigint NOT NULL,
	"renewed_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "budget_leases_budget_id_process_id_pk" PRIMARY KEY("budget_id","process_id")
);
--> statement-breakpoint
CREATE TABLE "budget_periods" (
	"budget_id" uuid NOT NULL,
	"begins_at" timestamp with time zone NOT NULL,
	"ends_at" timestamp with time zone NOT NULL,
	"used" bigint DEFAULT 0 NOT NULL,
	"noted_percent" integer DEFAULT 0 NOT NULL,
	CONSTRAINT "budget_periods_budget_id_begins_at_pk" PRIMARY KEY("budget_id","begins_at")
);
--> statement-breakpoint
CREATE TABLE "budgets" (
	"id" uuid PRIMARY KEY NOT NULL,
	"organization_id" uuid NOT NULL,
	"scope" text NOT NULL,
	"owner_id" uuid NOT NULL,
	"name" text NOT NULL,
	"selector" jsonb DEFAULT '{}'::jsonb NOT NULL,
	"unit" text NOT NULL,
	"limit_units" bigint NOT NULL,
	"period" text NOT NULL,
	"time_zone" text NOT NULL,
	"mode" text NOT NULL,
	"unpriced_price" numeric,
	"on_fault" text NOT NULL,
	"position" integer NOT NULL,
	"revision" integer DEFAULT 1 NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "budgets_owner_name" UNIQUE("owner_id","name")
);
--> statement-breakpoint
CREATE TABLE "session_keys" (
	"organization_id" uuid NOT NULL,
	"instance_id" uuid NOT NULL,
	"session" text NOT NULL,
	"key_id" uuid NOT NULL,
	"noted_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "session_keys_instance_id_session_pk" PRIMARY KEY("instance_id","session")
);
--> statement-breakpoint
ALTER TABLE "model_calls" ADD COLUMN "estimated_tokens" integer;--> statement-breakpoint
ALTER TABLE "model_calls" ADD COLUMN "estimated_cost" numeric(18, 9);--> statement-breakpoint
CREATE INDEX "budget_periods_ended" ON "budget_periods" USING btree ("ends_at");--> statement-breakpoint
CREATE INDEX "budgets_organization" ON "budgets" USING btree ("organization_id");--> statement-breakpoint
CREATE INDEX "session_keys_noted" ON "session_keys" USING btree ("noted_at");--> statement-breakpoint
-- The period that a time is in. The end is the beginning of the next one, also where clocks are changed in between.
CREATE FUNCTION budget_period(per text, zone text, at timestamptz, OUT begins_at timestamptz, OUT ends_at timestamptz)
LANGUAGE plpgsql STABLE AS $$
BEGIN
  begins_at := date_trunc(per, at, zone);
  -- Of a midnight that clocks show twice, days begin at the second one.
  IF begins_at > at THEN begins_at := date_trunc(per, at - interval '3 hours', zone); END IF;
  ends_at := CASE WHEN per = 'hour' THEN begins_at + interval '1 hour'
    -- Where midnight is skipped, the local time of the beginning is 1:00.
    ELSE (date_trunc(per, begins_at AT TIME ZONE zone) + ('1 ' || per)::interval) AT TIME ZONE zone END;
END
$$;--> statement-breakpoint
-- What a call counts in a budget: what its vendor told, and the estimate of the rest. In billionths of a US dollar a
-- model without a price counts the budget's own one.
CREATE FUNCTION budget_units(unit text, unpriced_price numeric, call model_calls) RETURNS numeric
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE unit
    WHEN 'tokens' THEN coalesce(call.input_tokens, 0)::numeric + coalesce(call.output_tokens, 0)
      + coalesce(call.estimated_tokens, 0)
    ELSE ceil(1e9 * (
      coalesce(call.cost, (coalesce(call.input_tokens, 0)::numeric + coalesce(call.output_tokens, 0))
        * coalesce(unpriced_price, 0) / 1e6)
      + coalesce(call.estimated_cost, coalesce(call.estimated_tokens, 0) * coalesce(unpriced_price, 0) / 1e6))) END
$$;--> statement-breakpoint
-- Adds calls to what the budgets have used that are for them, or takes them off. Writes an event the first time that a
-- period has reached 50, 80 and 100 percent. Locks the periods in the order of their budgets, as lease_budgets does.
CREATE FUNCTION add_to_budgets(calls model_calls[], sign integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  counted uuid[];
BEGIN
  WITH changes AS (
    SELECT b.id, period.begins_at, period.ends_at, sum(sign * budget_units(b.unit, b.unpriced_price, call)) AS units
    FROM unnest(calls) AS call
    LEFT JOIN session_keys k ON k.instance_id = call.instance_id AND k.session = call.session
    JOIN budgets b ON b.owner_id = ANY (ARRAY[call.organization_id, call.instance_id, k.key_id])
      AND b.organization_id = call.organization_id
    CROSS JOIN LATERAL budget_period(b.period, b.time_zone, call.began_at) AS period
    WHERE b.selector = '{}' OR EXISTS (
      SELECT FROM instances i WHERE i.id = call.instance_id AND i.metadata @> b.selector)
    GROUP BY 1, 2, 3 ORDER BY 1, 2
  ), written AS (
    INSERT INTO budget_periods AS p (budget_id, begins_at, ends_at, used)
    SELECT id, begins_at, ends_at, units FROM changes
    ON CONFLICT (budget_id, begins_at) DO UPDATE SET used = p.used + excluded.used
    RETURNING p.budget_id
  )
  SELECT array_agg(budget_id) INTO counted FROM written;
  IF counted IS NULL THEN RETURN; END IF;
  WITH reached AS (
    SELECT p.budget_id, p.begins_at, p.used, p.noted_percent, max(level) AS percent
    FROM budget_periods p JOIN budgets b ON b.id = p.budget_id
    JOIN unnest(ARRAY[50, 80, 100]) AS level ON p.used::numeric * 100 >= b.limit_units::numeric * level
    WHERE p.budget_id = ANY (counted) AND p.ends_at > now()
    GROUP BY 1, 2 HAVING max(level) > p.noted_percent
  ), noted AS (
    UPDATE budget_periods p SET noted_percent = reached.percent FROM reached
    WHERE p.budget_id = reached.budget_id AND p.begins_at = reached.begins_at
    RETURNING p.budget_id, p.used, reached.noted_percent AS before, reached.percent
  )
  INSERT INTO events (organization_id, instance_id, type, subject, actor_type, reason)
  SELECT b.organization_id, CASE b.scope WHEN 'instance' THEN b.owner_id END, 'budget.reached', b.name, 'worker',
    level || ' % of ' || CASE b.unit WHEN 'tokens' THEN b.limit_units || ' tokens' ELSE '$' || round(b.limit_units / 1e9, 2)
      END || ' in this ' || b.period || CASE b.scope WHEN 'key' THEN ', by the key ' || b.owner_id ELSE '' END
  FROM noted JOIN budgets b ON b.id = noted.budget_id
  JOIN unnest(ARRAY[50, 80, 100]) AS level ON level > noted.before AND level <= noted.percent
  ORDER BY b.id, level;
END
$$;--> statement-breakpoint
CREATE FUNCTION count_budget_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' THEN
    PERFORM add_to_budgets(array_agg(ROW(c.*)::model_calls), -1) FROM old_calls c;
  END IF;
  PERFORM add_to_budgets(array_agg(ROW(c.*)::model_calls), 1) FROM new_calls c;
  RETURN NULL;
END
$$;--> statement-breakpoint
CREATE TRIGGER model_calls_budgets AFTER INSERT ON model_calls REFERENCING NEW TABLE AS new_calls
FOR EACH STATEMENT EXECUTE FUNCTION count_budget_usage();--> statement-breakpoint
CREATE TRIGGER model_calls_budgets_update AFTER UPDATE ON model_calls
REFERENCING OLD TABLE AS old_calls NEW TABLE AS new_calls
FOR EACH STATEMENT EXECUTE FUNCTION count_budget_usage();--> statement-breakpoint
-- Leases what is left of budgets to a relay. Each item of asks has the id of a budget, what the open calls of the relay
-- may use of it (open), and what each call may use that waits (caps). A call is let through while anything is left, and
-- with it an eighth of the rest, so that a relay need not ask for each call. The lease that the relay had before ends.
CREATE FUNCTION lease_budgets(process uuid, asks jsonb)
RETURNS TABLE (id uuid, lease bigint, used bigint, limit_units bigint, ends_at timestamptz, ms_left float8)
LANGUAGE plpgsql AS $$
DECLARE
  ask record;
  budget budgets;
  begins timestamptz;
  rest numeric;
  cap bigint;
BEGIN
  FOR ask IN SELECT * FROM jsonb_to_recordset(asks) AS x (id uuid, open bigint, caps bigint[]) ORDER BY x.id LOOP
    SELECT * INTO budget FROM budgets b WHERE b.id = ask.id;
    CONTINUE WHEN NOT FOUND;
    SELECT p.begins_at, p.ends_at INTO begins, ends_at
    FROM budget_period(budget.period, budget.time_zone, clock_timestamp()) p;
    id := ask.id;
    limit_units := budget.limit_units;
    INSERT INTO budget_periods (budget_id, begins_at, ends_at) VALUES (ask.id, begins, lease_budgets.ends_at)
    ON CONFLICT DO NOTHING;
    SELECT p.used INTO used FROM budget_periods p WHERE p.budget_id = ask.id AND p.begins_at = begins FOR UPDATE;
    -- Another statement: it sees what others have leased before this one had the lock.
    SELECT budget.limit_units - used - ask.open - coalesce(sum(l.units), 0) INTO rest FROM budget_leases l
    WHERE l.budget_id = ask.id AND l.process_id <> process AND l.begins_at = begins
      AND l.renewed_at > clock_timestamp() - interval '20 s';
    lease := ask.open;
    FOREACH cap IN ARRAY ask.caps LOOP
      EXIT WHEN rest <= 0;
      lease := lease + cap;
      rest := rest - cap;
    END LOOP;
    IF ask.caps <> '{}' THEN lease := lease + greatest(0, floor(rest / 8)); END IF;
    INSERT INTO budget_leases AS l (budget_id, process_id, begins_at, units, renewed_at)
    VALUES (ask.id, process, begins, lease, clock_timestamp())
    ON CONFLICT (budget_id, process_id)
    DO UPDATE SET begins_at = excluded.begins_at, units = excluded.units, renewed_at = excluded.renewed_at;
    ms_left := extract(epoch FROM ends_at - clock_timestamp()) * 1000;
    RETURN NEXT;
  END LOOP;
END
$$;
