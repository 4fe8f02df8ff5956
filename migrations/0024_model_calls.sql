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
	"cost" numeric(18, 9)
);
--> statement-breakpoint
CREATE UNLOGGED TABLE "open_model_calls" (
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
CREATE INDEX "model_calls_organization" ON "model_calls" USING btree ("organization_id","began_at");--> statement-breakpoint
CREATE INDEX "model_calls_instance" ON "model_calls" USING btree ("instance_id","began_at");--> statement-breakpoint
CREATE INDEX "model_calls_began" ON "model_calls" USING btree ("began_at");--> statement-breakpoint
CREATE INDEX "session_end_users_noted" ON "session_end_users" USING btree ("noted_at");--> statement-breakpoint
-- Once for each statement, not for each row: calls are written many at a time.
CREATE FUNCTION count_call_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP <> 'INSERT' THEN
    INSERT INTO stored_byte_changes (organization_id, kind, bytes)
    SELECT organization_id, 'calls', -sum(300 + coalesce(octet_length(session), 0) + coalesce(octet_length(end_user), 0)
      + coalesce(octet_length(model), 0)) FROM old_calls GROUP BY organization_id;
  END IF;
  IF TG_OP <> 'DELETE' THEN
    INSERT INTO stored_byte_changes (organization_id, kind, bytes)
    SELECT organization_id, 'calls', sum(300 + coalesce(octet_length(session), 0) + coalesce(octet_length(end_user), 0)
      + coalesce(octet_length(model), 0)) FROM new_calls GROUP BY organization_id;
  END IF;
  RETURN NULL;
END
$$;--> statement-breakpoint
CREATE TRIGGER model_calls_stored_bytes AFTER INSERT ON model_calls REFERENCING NEW TABLE AS new_calls
FOR EACH STATEMENT EXECUTE FUNCTION count_call_bytes();--> statement-breakpoint
CREATE TRIGGER model_calls_stored_bytes_update AFTER UPDATE ON model_calls
REFERENCING OLD TABLE AS old_calls NEW TABLE AS new_calls
FOR EACH STATEMENT EXECUTE FUNCTION count_call_bytes();--> statement-breakpoint
CREATE TRIGGER model_calls_stored_bytes_delete AFTER DELETE ON model_calls REFERENCING OLD TABLE AS old_calls
FOR EACH STATEMENT EXECUTE FUNCTION count_call_bytes();
