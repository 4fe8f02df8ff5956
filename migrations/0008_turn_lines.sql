CREATE UNLOGGED TABLE "turn_lines" (
	"instance_id" uuid NOT NULL,
	"session_key" text NOT NULL,
	"turns" text[] NOT NULL,
	"entered_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "turn_lines_instance_id_session_key_pk" PRIMARY KEY("instance_id","session_key")
);
--> statement-breakpoint
CREATE UNLOGGED TABLE "turn_processes" (
	"id" uuid PRIMARY KEY NOT NULL,
	"is_alone" boolean NOT NULL,
	"seen_at" timestamp with time zone DEFAULT now() NOT NULL
);
