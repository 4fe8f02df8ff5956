CREATE TABLE "schedules" (
	"id" uuid PRIMARY KEY NOT NULL,
	"organization_id" uuid NOT NULL,
	"instance_id" uuid NOT NULL,
	"name" text NOT NULL,
	"cron" text,
	"time_zone" text NOT NULL,
	"at" timestamp with time zone,
	"sealed_input" text NOT NULL,
	"session_key" text NOT NULL,
	"model" text NOT NULL,
	"overlap" text NOT NULL,
	"catch_up_seconds" integer NOT NULL,
	"jitter_seconds" integer NOT NULL,
	"pause_on_failures" integer,
	"failures" integer DEFAULT 0 NOT NULL,
	"paused_for" text,
	"next_at" timestamp with time zone,
	"waiting_since" timestamp with time zone,
	"is_asked_for" boolean DEFAULT false NOT NULL,
	"last_response_id" uuid,
	"runs" jsonb DEFAULT '[]'::jsonb NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
ALTER TABLE "schedules" ADD CONSTRAINT "schedules_instance_id_instances_id_fk" FOREIGN KEY ("instance_id") REFERENCES "public"."instances"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "schedules_instance" ON "schedules" USING btree ("instance_id","created_at","id");--> statement-breakpoint
CREATE INDEX "schedules_due" ON "schedules" USING btree ("next_at") WHERE next_at IS NOT NULL;