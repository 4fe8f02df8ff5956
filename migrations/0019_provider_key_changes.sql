CREATE TABLE "provider_key_changes" (
	"organization_id" uuid NOT NULL,
	"provider" text NOT NULL,
	"after_instance_id" uuid NOT NULL,
	CONSTRAINT "provider_key_changes_organization_id_provider_pk" PRIMARY KEY("organization_id","provider")
);
