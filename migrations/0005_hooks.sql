CREATE TABLE "hooks" (
	"id" uuid PRIMARY KEY NOT NULL,
	"organization_id" uuid NOT NULL,
	"instance_id" uuid NOT NULL,
	"name" text NOT NULL,
	"kind" text NOT NULL,
	"sealed_secret" text NOT NULL,
	"sealed_input" text NOT NULL,
	"session" text NOT NULL,
	"model" text NOT NULL,
	"is_paused" boolean DEFAULT false NOT NULL,
	"calls" jsonb DEFAULT '[]'::jsonb NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
ALTER TABLE "hooks" ADD CONSTRAINT "hooks_instance_id_instances_id_fk" FOREIGN KEY ("instance_id") REFERENCES "public"."instances"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "hooks_instance" ON "hooks" USING btree ("instance_id","created_at","id");