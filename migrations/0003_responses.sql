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
	"seen_at" timestamp with time zone DEFAULT now() NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE INDEX "passing_sessions_due" ON "passing_sessions" USING btree ("due_at");--> statement-breakpoint
CREATE INDEX "responses_session" ON "responses" USING btree ("instance_id","session_key","created_at","id");--> statement-breakpoint
CREATE INDEX "responses_instance" ON "responses" USING btree ("instance_id","created_at","id");